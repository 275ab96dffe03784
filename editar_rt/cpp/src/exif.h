// A picture's orientation, from EXIF or XMP, even if other tags are damaged (editar_rt/images/orientation.py).
#pragma once

#include <string>
#include <string_view>

#include "pictures.h"

namespace editar {

// 1 to 8 as EXIF has them; anything else is upright. Empty texts are absent ones.
int orientation(std::string_view exif, std::string_view xmp);
bool swaps_sides(int orientation);
Picture turned_upright(Picture picture, int orientation);

}  // namespace editar
