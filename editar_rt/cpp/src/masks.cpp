#include "masks.h"

#include <algorithm>

namespace editar {

namespace {

// The least or largest value within `reach` of each pixel along one axis; the border is repeated.
template <typename Choose>
Bools along(const Bools& from, int side, int reach, int step, int other, Choose choose) {
    Bools to(from.size());
    for (int line = 0; line < side; ++line)
        for (int n = 0; n < side; ++n) {
            const int first = std::max(n - reach, 0), last = std::min(n + reach, side - 1);
            uint8_t value = from[line * other + first * step];
            for (int each = first + 1; each <= last; ++each) value = choose(value, from[line * other + each * step]);
            to[line * other + n * step] = value;
        }
    return to;
}

template <typename Choose>
Bools around(const Bools& from, int side, int reach, Choose choose) {
    return along(along(from, side, reach, 1, side, choose), side, reach, side, 1, choose);
}

uint8_t least(uint8_t a, uint8_t b) {
    return std::min(a, b);
}
uint8_t largest(uint8_t a, uint8_t b) {
    return std::max(a, b);
}

}  // namespace

Bools touched_cells(const Bools& mask, int side, int grid) {
    Bools cells(static_cast<size_t>(grid) * grid, 0);
    const int cell = side / grid;
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x)
            if (mask[y * side + x] != 0) cells[y / cell * grid + x / cell] = 1;
    return cells;
}

Bools dilate(const Bools& cells, int grid, int margin) {
    return margin > 0 ? around(cells, grid, std::min(margin, grid - 1), largest) : cells;
}

std::vector<float> feather(const Bools& mask, int side, int grid) {
    // The weight rises over a quarter of a token's cell from the mask's edge, or faster where the mask is narrow. The
    // picture's border is not an edge of the mask.
    const int width = side / grid / 4;
    Bools layer = mask, depth = mask;  // depth: pixels from the edge, up to width + 1
    for (int n = 0; n < width; ++n) {
        layer = around(layer, side, 1, least);
        for (size_t pixel = 0; pixel < depth.size(); ++pixel) depth[pixel] = depth[pixel] + layer[pixel];
    }
    const Bools deepest = around(depth, side, width, largest);
    std::vector<float> share(mask.size(), 0.0F);
    for (size_t pixel = 0; pixel < mask.size(); ++pixel)
        if (mask[pixel] != 0)
            share[pixel] = static_cast<float>(depth[pixel]) / std::max(static_cast<float>(deepest[pixel]), 1.0F);
    return share;
}

void composite(uint8_t* edited, const uint8_t* source, const std::vector<float>& share) {
    for (size_t pixel = 0; pixel < share.size(); ++pixel)
        for (size_t n = 3 * pixel; n < 3 * pixel + 3; ++n) {
            const auto below = static_cast<float>(source[n]);
            const float mixed = below + share[pixel] * (static_cast<float>(edited[n]) - below);
            edited[n] = static_cast<uint8_t>(mixed + 0.5F);
        }
}

}  // namespace editar
