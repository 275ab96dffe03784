#include "picture_files.h"

#include <system_error>

#include "decoded.h"
#include "error.h"
#include "exif.h"
#include "facts.h"
#include "files.h"

namespace editar {

#ifdef EDITAR_PICTURE_FILES

namespace {

std::string_view checked_file(const void* file, size_t bytes) {
    using facts::pictures::MAX_BYTES;
    if (!file && bytes > 0) throw option_error("a picture's file must not be NULL");
    if (bytes > static_cast<size_t>(MAX_BYTES))
        throw picture_error("the picture has more than " + std::to_string(MAX_BYTES >> 20) +
                            " MB; at most that much is read");
    return {static_cast<const char*>(file), bytes};
}

[[noreturn]] void unknown_format() {
    throw picture_error("the picture is not a PNG or JPEG, which this library reads; convert it to one of them");
}

// Pillow's grey of a colour.
uint8_t grey_of_color(const uint8_t* color) {
    return static_cast<uint8_t>((color[0] * 19595u + color[1] * 38470u + color[2] * 7471u + 0x8000u) >> 16);
}

}  // namespace

Picture read_picture(const void* file, size_t bytes, bool grey) {
    const std::string_view content = checked_file(file, bytes);
    if (!is_png(content) && !is_jpeg(content)) unknown_format();
    Decoded decoded = is_png(content) ? read_png(content) : read_jpeg(content);
    convert_to_srgb(decoded);
    const auto& colors = decoded.colors;
    const auto from = static_cast<size_t>(decoded.channels()), to = static_cast<size_t>(grey ? 1 : 3);
    const uint8_t ground = grey ? 0 : 255;
    Picture picture{decoded.metadata.width, decoded.metadata.height, static_cast<int>(to), {}};
    const size_t pixels = colors.size() / from;
    picture.data.resize(pixels * to);
    for (size_t i = 0; i < pixels; ++i) {
        uint8_t color[3];
        for (size_t channel = 0; channel < 3; ++channel) {
            color[channel] = colors[i * from + (from == 1 ? 0 : channel)];
            if (!decoded.alpha.empty()) color[channel] = blended(color[channel], decoded.alpha[i], ground);
        }
        if (grey)
            picture.data[i] = grey_of_color(color);
        else
            std::copy(color, color + 3, picture.data.begin() + static_cast<std::ptrdiff_t>(3 * i));
    }
    return turned_upright(std::move(picture), decoded.metadata.orientation);
}

std::pair<int, int> picture_size(const void* file, size_t bytes) {
    const std::string_view content = checked_file(file, bytes);
    if (!is_png(content) && !is_jpeg(content)) unknown_format();
    const Metadata metadata = is_png(content) ? read_png_metadata(content) : read_jpeg_metadata(content);
    const bool swaps = swaps_sides(metadata.orientation);
    return {swaps ? metadata.height : metadata.width, swaps ? metadata.width : metadata.height};
}

#else

namespace {

[[noreturn]] void not_built_in() {
    throw unsupported("this library was built without PNG and JPEG files; decode pictures before they are given to it");
}

}  // namespace

Picture read_picture(const void*, size_t, bool) {
    not_built_in();
}

std::pair<int, int> picture_size(const void*, size_t) {
    not_built_in();
}

std::string png_bytes(const Picture&, const Texts&) {
    not_built_in();
}

#endif

void write_png(const std::string& path, const Picture& picture, const Texts& texts) {
    const std::string content = png_bytes(picture, texts);
    try {
        place_file(path, content);
    } catch (const std::system_error& error) {
        throw picture_error("cannot write " + path + ": " + error.code().message());
    }
}

}  // namespace editar
