#include "pictures.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "facts.h"

namespace editar {

namespace {

// A checked copy, line by line, of a picture in the caller's memory.
Picture copy_of(const editar_picture& given) {
    const int channels = given.channels;
    if (!given.data) throw option_error("a picture's data must not be NULL");
    if (channels != EDITAR_GREY && channels != EDITAR_RGB && channels != EDITAR_RGBA)
        throw option_error("a picture's channels must be 1, 3 or 4, got " + std::to_string(channels));
    if (given.width < 1 || given.height < 1)
        throw option_error("a picture's width and height must be 1 or more, got " + sizes(given.width, given.height));
    check_size(given.width, given.height);
    const int64_t line = int64_t{given.width} * channels;
    const int64_t stride = given.stride == 0 ? line : given.stride;
    if (stride < line)
        throw option_error("a picture's stride must be 0, or at least its " + std::to_string(line) +
                           " bytes of a line, got " + std::to_string(given.stride));
    Picture picture{given.width, given.height, channels, {}};
    picture.data.resize(static_cast<size_t>(line * given.height));
    for (int y = 0; y < given.height; ++y)
        std::memcpy(picture.data.data() + y * line, given.data + y * stride, static_cast<size_t>(line));
    return picture;
}

}  // namespace

std::string sizes(int64_t width, int64_t height) {
    return std::to_string(width) + "×" + std::to_string(height);
}

void check_size(int64_t width, int64_t height) {
    using facts::pictures::MAX_PIXELS, facts::pictures::MAX_SIDE;
    if (width * height > MAX_PIXELS)
        throw picture_error("the picture has " + sizes(width, height) + " pixels; at most " +
                            std::to_string(MAX_PIXELS / 1000000) + " million are read, make it smaller");
    if (width < 1 || height < 1) throw picture_error("the picture is empty (" + sizes(width, height) + " pixels)");
    if (std::max(width, height) > MAX_SIDE)
        throw picture_error("the picture has " + sizes(width, height) + " pixels; at most " + std::to_string(MAX_SIDE) +
                            " on a side are read, cut it");
}

// Pillow's alpha_composite, on an opaque ground.
uint8_t blended(uint8_t color, uint8_t alpha, uint8_t ground) {
    constexpr uint32_t bits = 7;
    const uint32_t sum = ((color * alpha + ground * (255u - alpha)) << bits) + (0x80u << bits);
    return static_cast<uint8_t>((((sum >> 8) + sum) >> 8) >> bits);
}

Picture rgb_of(const editar_picture& given) {
    Picture own = copy_of(given);
    if (own.channels == EDITAR_RGB) return own;
    Picture rgb{own.width, own.height, EDITAR_RGB, {}};
    rgb.data.resize(own.data.size() / static_cast<size_t>(own.channels) * 3);
    const uint8_t* from = own.data.data();
    for (size_t i = 0; i < rgb.data.size(); ++i) {
        const size_t pixel = i / 3, channel = i % 3;
        rgb.data[i] =
            own.channels == EDITAR_GREY ? from[pixel] : blended(from[4 * pixel + channel], from[4 * pixel + 3], 255);
    }
    return rgb;
}

Picture grey_of(const editar_picture& given) {
    if (given.channels != EDITAR_GREY)
        throw option_error("a mask must have 1 channel, got " + std::to_string(given.channels));
    return copy_of(given);
}

}  // namespace editar
