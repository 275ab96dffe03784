// Masks: the tokens to sample, and pasting the result into the picture. `fit_mask` of pictures.h reads them.
#pragma once

#include <cstdint>
#include <vector>

namespace editar {

using Bools = std::vector<uint8_t>;

// The cells (tokens) that a mask [side * side] touches, [grid * grid].
Bools touched_cells(const Bools& mask, int side, int grid);
// Cells and all cells within `margin` of them, including diagonals.
Bools dilate(const Bools& cells, int grid, int margin);
// Weight of the edited picture in each pixel, [side * side]: 0 outside the mask, rising to 1 inside.
std::vector<float> feather(const Bools& mask, int side, int grid);
// Blend an edited RGB picture into its source by weights; 0 keeps the source exactly.
void composite(uint8_t* edited, const uint8_t* source, const std::vector<float>& share);

}  // namespace editar
