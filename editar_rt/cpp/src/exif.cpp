#include "exif.h"

#include <optional>

#include "facts.h"

namespace editar {

namespace {

// A directory's numbers, in the order of bytes that the file says. Nothing beyond the end.
class Numbers {
public:
    explicit Numbers(std::string_view content) : content_(content), big_(content.substr(0, 2) == "MM") {}
    bool good() const { return big_ || content_.substr(0, 2) == "II"; }

    std::optional<uint32_t> at(size_t place, size_t size) const {
        if (place > content_.size() || size > content_.size() - place) return {};
        uint32_t value = 0;
        for (size_t i = 0; i < size; ++i) {
            const size_t from = big_ ? place + i : place + size - 1 - i;
            value = value << 8 | static_cast<uint8_t>(content_[from]);
        }
        return value;
    }

private:
    std::string_view content_;
    bool big_;
};

// The tag's value in the first directory, whatever other tags are; 0 if its type is not one of whole numbers.
std::optional<int> exif_orientation(std::string_view content) {
    constexpr std::string_view head("Exif\0\0", 6);
    if (content.substr(0, head.size()) == head) content.remove_prefix(head.size());
    const Numbers numbers(content);
    const auto start = numbers.good() ? numbers.at(4, 4) : std::nullopt;
    const auto count = start ? numbers.at(*start, 2) : std::nullopt;
    for (size_t i = 0; count && i < *count; ++i) {
        const size_t place = size_t{*start} + 2 + 12 * i;
        const auto tag = numbers.at(place, 2), kind = numbers.at(place + 2, 2);
        if (!tag || !kind || !numbers.at(place + 4, 4)) return {};
        if (*tag != facts::pictures::ORIENTATION) continue;
        // BYTE, SHORT and LONG, as cameras write it, and their forms with a sign.
        const size_t size = *kind == 1 || *kind == 6   ? 1
                            : *kind == 3 || *kind == 8 ? 2
                            : *kind == 4 || *kind == 9 ? 4
                                                       : 0;
        const auto value = size == 0 ? std::optional<uint32_t>(0) : numbers.at(place + 8, size);
        if (!value) return {};
        return *value > 8 ? 0 : static_cast<int>(*value);
    }
    return {};
}

}  // namespace

int orientation(std::string_view exif, std::string_view xmp) {
    if (const auto found = exif_orientation(exif)) return *found;
    constexpr std::string_view tag = "tiff:Orientation";
    for (size_t at = xmp.find(tag); at != std::string_view::npos; at = xmp.find(tag, at)) {
        at += tag.size();
        const size_t digit = xmp.substr(at, 2) == "=\"" ? at + 2 : xmp.substr(at, 1) == ">" ? at + 1 : xmp.size();
        if (digit < xmp.size() && xmp[digit] >= '0' && xmp[digit] <= '9') return xmp[digit] - '0';
    }
    return 1;
}

bool swaps_sides(int orientation) {
    return orientation >= 5 && orientation <= 8;
}

Picture turned_upright(Picture picture, int orientation) {
    if (orientation < 2 || orientation > 8) return picture;
    const auto width = static_cast<size_t>(picture.width), height = static_cast<size_t>(picture.height);
    const auto channels = static_cast<size_t>(picture.channels);
    const bool swaps = swaps_sides(orientation);
    Picture upright{
        swaps ? picture.height : picture.width, swaps ? picture.width : picture.height, picture.channels, {}};
    upright.data.resize(picture.data.size());
    // Where the pixel of each place comes from: 2 mirrored, 3 turned by half, 4 flipped, 5 transposed, 6 turned by a
    // quarter clockwise, 7 transposed across the other diagonal, 8 turned by a quarter counter-clockwise.
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    uint8_t* out = upright.data.data();
    for (size_t y = 0; y < static_cast<size_t>(upright.height); ++y) {
        for (size_t x = 0; x < static_cast<size_t>(upright.width); ++x) {
            const size_t across = swaps ? y : x, down = swaps ? x : y;
            const size_t column = from_right ? width - 1 - across : across;
            const size_t row = from_bottom ? height - 1 - down : down;
            const uint8_t* in = picture.data.data() + (row * width + column) * channels;
            for (size_t channel = 0; channel < channels; ++channel) *out++ = in[channel];
        }
    }
    return upright;
}

}  // namespace editar
