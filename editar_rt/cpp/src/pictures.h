// Pictures as 8-bit arrays: the square that the model sees, as Pillow's Lanczos filter scales it, and masks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "editar/editar.h"

namespace editar {

struct Picture {  // lines from the top, without gaps
    int width = 0, height = 0, channels = 0;
    std::vector<uint8_t> data;
};

// A checked copy of a caller's picture; RGBA is blended with white, grey becomes RGB. Throws EDITAR_BAD_ARGUMENT, and
// EDITAR_BAD_PICTURE where it is too large.
Picture rgb_of(const editar_picture& given);
// A checked copy of a caller's grey picture.
Picture grey_of(const editar_picture& given);

// The middle square of an RGB picture at side * side pixels: `fit_square` of editar_rt/images/fit.py.
Picture fit_square(const Picture& picture, int side);
// `read_mask` of editar_rt/images/masks.py with fit crop: 1 where a pixel of the square may change, [side * side].
// Throws EDITAR_BAD_PICTURE where the aspect ratios differ.
std::vector<uint8_t> fit_mask(const Picture& mask, int width, int height, int side);

// Throws EDITAR_BAD_PICTURE where a picture is empty or too large.
void check_size(int64_t width, int64_t height);
// A size for messages: 640×480.
std::string sizes(int64_t width, int64_t height);
// A colour of some opacity on an opaque ground, rounded as Pillow's alpha_composite rounds.
uint8_t blended(uint8_t color, uint8_t alpha, uint8_t ground);

}  // namespace editar
