// PNG files, with libspng: pixels as Pillow reads them, and writing.
#include "decoded.h"
#include "error.h"
#include "exif.h"
#include "facts.h"
#include "picture_files.h"

#ifdef EDITAR_PICTURE_FILES
#include <spng.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace editar {

namespace {

using Space = Decoded::Space;
constexpr size_t most_in_chunks = 64 << 20;                                   // bytes, uncompressed
constexpr int grey = 0, rgb = 2, indexed = 3, grey_alpha = 4, rgb_alpha = 6;  // colour types

struct Free {
    void operator()(spng_ctx* context) const { spng_ctx_free(context); }
};
using Context = std::unique_ptr<spng_ctx, Free>;

void check(int error) {
    if (error != 0)
        throw picture_error(std::string("the picture cannot be read (") + spng_strerror(error) + "); is it truncated?");
}

struct Chunk {
    std::string_view name, data;
};

// The chunk that begins at `at`, which moves behind it; false where none is whole.
bool next_chunk(std::string_view file, size_t& at, Chunk& chunk) {
    if (at + 12 > file.size()) return false;
    size_t size = 0;
    for (size_t i = 0; i < 4; ++i) size = size << 8 | static_cast<uint8_t>(file[at + i]);
    if (size > file.size() - at - 12) return false;
    chunk = {file.substr(at + 4, 4), file.substr(at + 8, size)};
    at += size + 12;
    return true;
}

// The last chunk of a name before the pixels; empty if there is none.
std::string_view chunk_before_pixels(std::string_view file, std::string_view name) {
    std::string_view found;
    Chunk chunk;
    for (size_t at = 8; next_chunk(file, at, chunk) && chunk.name != "IDAT";)
        if (chunk.name == name) found = chunk.data;
    return found;
}

// Deflate makes at most 1,032 bytes of one: a file that is too small for its pixels is refused before memory is taken.
void check_packed(std::string_view file, size_t pixel_bytes) {
    size_t packed = 0;
    Chunk chunk;
    for (size_t at = 8; next_chunk(file, at, chunk);)
        if (chunk.name == "IDAT") packed += chunk.data.size();
    if (pixel_bytes / 1032 > packed)
        throw picture_error("the picture cannot be read (it has too few bytes for its pixels); is it truncated?");
}

Context opened(std::string_view file, spng_ihdr& header) {
    Context context(spng_ctx_new(0));
    if (!context) throw std::bad_alloc();
    check(spng_set_crc_action(context.get(), SPNG_CRC_ERROR, SPNG_CRC_ERROR));
    check(spng_set_chunk_limits(context.get(), most_in_chunks, most_in_chunks));
    check(spng_set_png_buffer(context.get(), file.data(), file.size()));
    check(spng_get_ihdr(context.get(), &header));
    check_size(header.width, header.height);
    return context;
}

// EXIF as ImageMagick writes it into a text: three lines of a head, then hexadecimal digits.
std::string raw_profile(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
        const size_t end = text.find('\n');
        if (end == std::string_view::npos) return "";
        text.remove_prefix(end + 1);
    }
    std::string bytes;
    int high = -1;
    for (const char c : text) {
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) continue;
        if (high >= 0) bytes.push_back(static_cast<char>(high << 4 | digit));
        high = high >= 0 ? -1 : digit;
    }
    return bytes;
}

Metadata metadata_of(spng_ctx* context, const spng_ihdr& header) {
    Metadata metadata;
    metadata.width = static_cast<int>(header.width);
    metadata.height = static_cast<int>(header.height);
    std::string exif, xmp;
    uint32_t count = 0;
    if (spng_get_text(context, nullptr, &count) == 0 && count > 0) {
        std::vector<spng_text> texts(count);
        check(spng_get_text(context, texts.data(), &count));
        for (const auto& text : texts) {
            const std::string_view value(text.text, text.length);
            if (std::strcmp(text.keyword, "XML:com.adobe.xmp") == 0) xmp = value;
            if (std::strcmp(text.keyword, "Raw profile type exif") == 0) exif = raw_profile(value);
        }
    }
    spng_exif chunk;
    if (spng_get_exif(context, &chunk) == 0) exif.assign(chunk.data, chunk.length);
    metadata.orientation = orientation(exif, xmp);
    spng_iccp profile;
    if (spng_get_iccp(context, &profile) == 0) metadata.profile = std::string(profile.profile, profile.profile_len);
    return metadata;
}

// The sample at a place of a line: packed from the high bit below 8 bits, big-endian with 16.
uint32_t sample(const uint8_t* line, size_t index, unsigned bits) {
    if (bits == 8) return line[index];
    if (bits == 16) return static_cast<uint32_t>(line[2 * index] << 8 | line[2 * index + 1]);
    const size_t bit = index * bits;
    return line[bit / 8] >> (8 - bits - bit % 8) & ((1u << bits) - 1);
}

class Pixels {
public:
    Pixels(Decoded& decoded, const spng_ihdr& header, std::string_view file, std::vector<uint8_t> raw)
        : decoded_(decoded),
          raw_(std::move(raw)),
          bits_(header.bit_depth),
          width_(header.width),
          height_(header.height),
          stride_(raw_.size() / header.height),
          key_(chunk_before_pixels(file, "tRNS")) {}

    void read(int color_type, std::string_view palette) {
        decoded_.space = color_type == grey && bits_ == 16                ? Space::deep_grey
                         : color_type == grey || color_type == grey_alpha ? Space::grey
                                                                          : Space::rgb;
        if (color_type == indexed) return look_up(palette);
        if (decoded_.space == Space::deep_grey) return deep_grey();
        const size_t colors = decoded_.space == Space::grey ? 1 : 3;
        const size_t samples = colors + (color_type == grey_alpha || color_type == rgb_alpha ? 1 : 0);
        // Grey of few bits is spread; of 16 bits the upper 8 are read.
        const uint32_t spread = bits_ < 8 ? 255u / ((1u << bits_) - 1) : 1;
        decoded_.colors.reserve(pixels() * colors);
        each_pixel([&](const uint8_t* line, size_t x) {
            for (size_t channel = 0; channel < samples; ++channel) {
                const uint32_t value = sample(line, x * samples + channel, bits_);
                const auto byte = static_cast<uint8_t>(bits_ == 16 ? value >> 8 : value * spread);
                (channel < colors ? decoded_.colors : decoded_.alpha).push_back(byte);
            }
        });
        if (samples == colors) make_key_transparent(colors);
    }

private:
    size_t pixels() const { return static_cast<size_t>(width_) * height_; }

    template <typename Work>
    void each_pixel(Work work) const {
        for (size_t y = 0; y < height_; ++y)
            for (size_t x = 0; x < width_; ++x) work(raw_.data() + y * stride_, x);
    }

    void look_up(std::string_view palette) {
        std::array<uint8_t, 768> colors{};
        std::memcpy(colors.data(), palette.data(), std::min(palette.size(), colors.size()));
        decoded_.colors.reserve(3 * pixels());
        each_pixel([&](const uint8_t* line, size_t x) {
            const size_t index = sample(line, x, bits_);
            decoded_.colors.insert(decoded_.colors.end(), colors.begin() + static_cast<std::ptrdiff_t>(3 * index),
                                   colors.begin() + static_cast<std::ptrdiff_t>(3 * index + 3));
            if (!key_.empty())
                decoded_.alpha.push_back(index < key_.size() ? static_cast<uint8_t>(key_[index]) : uint8_t{255});
        });
    }

    void deep_grey() {
        decoded_.deep.reserve(pixels());
        each_pixel([&](const uint8_t* line, size_t x) {
            decoded_.deep.push_back(static_cast<uint16_t>(sample(line, x, bits_)));
        });
        if (key_.size() < 2) return;
        for (const uint16_t value : decoded_.deep) decoded_.alpha.push_back(value == key_value(0) ? 0 : 255);
    }

    // One value or colour means transparent.
    void make_key_transparent(size_t channels) {
        if (key_.size() < 2 * channels) return;
        if (bits_ == 16 && channels == 3)
            throw picture_error(
                "the picture marks a colour of 16 bits per channel as transparent, but only 8 bits are read; save it "
                "with an alpha channel instead");
        decoded_.alpha.reserve(pixels());
        each_pixel([&](const uint8_t* line, size_t x) {
            bool matches = true;
            for (size_t channel = 0; channel < channels; ++channel) {
                const uint32_t key = bits_ == 1 ? (key_value(0) != 0 ? 1 : 0) : key_value(channel);
                matches = matches && sample(line, x * channels + channel, bits_) == key;
            }
            decoded_.alpha.push_back(matches ? 0 : 255);
        });
    }

    uint32_t key_value(size_t channel) const {
        return static_cast<uint32_t>(static_cast<uint8_t>(key_[2 * channel]) << 8 |
                                     static_cast<uint8_t>(key_[2 * channel + 1]));
    }

    Decoded& decoded_;
    std::vector<uint8_t> raw_;
    unsigned bits_;
    size_t width_, height_, stride_;
    std::string_view key_;
};

std::string big_endian(uint32_t value) {
    std::string bytes;
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift & 0xFF));
    return bytes;
}

uint32_t crc32(std::string_view bytes) {
    uint32_t crc = 0xFFFFFFFF;
    for (const char byte : bytes) {
        crc ^= static_cast<uint8_t>(byte);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

// A chunk iTXt, uncompressed and of no language. (libspng writes no empty texts.)
std::string text_chunk(const std::string& name, const std::string& value) {
    const std::string key = facts::pictures::TEXT_PREFIX + name;
    if (key.size() > 79 || name.empty())
        throw option_error("a text's name must have 1 to " +
                           std::to_string(79 - std::strlen(facts::pictures::TEXT_PREFIX)) + " bytes, got " +
                           std::to_string(name.size()));
    const std::string content = "iTXt" + key + std::string(5, '\0') + value;
    return big_endian(static_cast<uint32_t>(content.size() - 4)) + content + big_endian(crc32(content));
}

}  // namespace

bool is_png(std::string_view file) {
    return file.substr(0, 8) == "\x89PNG\r\n\x1a\n";
}

Decoded read_png(std::string_view file) {
    spng_ihdr header;
    const Context context = opened(file, header);
    size_t size = 0;
    check(spng_decoded_image_size(context.get(), SPNG_FMT_RAW, &size));
    check_packed(file, size);
    std::vector<uint8_t> raw(size);
    check(spng_decode_image(context.get(), raw.data(), raw.size(), SPNG_FMT_RAW, 0));
    spng_decode_chunks(context.get());  // those behind the pixels; damaged ones say nothing
    Decoded decoded;
    decoded.metadata = metadata_of(context.get(), header);
    Pixels(decoded, header, file, std::move(raw)).read(header.color_type, chunk_before_pixels(file, "PLTE"));
    return decoded;
}

Metadata read_png_metadata(std::string_view file) {
    spng_ihdr header;
    const Context context = opened(file, header);
    Chunk chunk;
    for (size_t at = 8; next_chunk(file, at, chunk);)
        if (chunk.name == "eXIf" || chunk.name == "iTXt" || chunk.name == "zTXt" || chunk.name == "tEXt")
            return read_png(file).metadata;  // which may be behind the pixels
    Metadata metadata;
    metadata.width = static_cast<int>(header.width);
    metadata.height = static_cast<int>(header.height);
    return metadata;
}

std::string png_bytes(const Picture& picture, const Texts& texts) {
    const auto written = [](int error) {
        if (error != 0)
            throw picture_error(std::string("the picture cannot be written (") + spng_strerror(error) + ")");
    };
    const Context context(spng_ctx_new(SPNG_CTX_ENCODER));
    if (!context) throw std::bad_alloc();
    spng_ihdr header{};
    header.width = static_cast<uint32_t>(picture.width);
    header.height = static_cast<uint32_t>(picture.height);
    header.bit_depth = 8;
    header.color_type = picture.channels == EDITAR_GREY ? grey : picture.channels == EDITAR_RGB ? rgb : rgb_alpha;
    written(spng_set_option(context.get(), SPNG_ENCODE_TO_BUFFER, 1));
    written(spng_set_ihdr(context.get(), &header));
    written(
        spng_encode_image(context.get(), picture.data.data(), picture.data.size(), SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE));
    int error = 0;
    size_t size = 0;
    const std::unique_ptr<void, decltype(&std::free)> buffer(spng_get_png_buffer(context.get(), &size, &error),
                                                             &std::free);
    written(error);
    const std::string_view file(static_cast<const char*>(buffer.get()), size);
    constexpr size_t head = 8 + 25;  // the signature and the header's chunk
    std::string whole(file.substr(0, head));
    for (const auto& [name, value] : texts) whole += text_chunk(name, value);
    whole += file.substr(head);
    return whole;
}

}  // namespace editar

#endif
