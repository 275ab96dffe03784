// PNG and JPEG files, read to the pixels that Pillow gives and editar_rt/images/pixels.py makes of them.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "pictures.h"

namespace editar {

// Upright RGB with transparency on white, or (grey) upright grey with transparency on black.
// Throws EDITAR_BAD_PICTURE; EDITAR_UNSUPPORTED where the format is not built in.
Picture read_picture(const void* file, size_t bytes, bool grey = false);
// Width and height of the upright picture, from the header alone.
std::pair<int, int> picture_size(const void* file, size_t bytes);

using Texts = std::vector<std::pair<std::string, std::string>>;  // names without "editar:", and values
std::string png_bytes(const Picture& picture, const Texts& texts);
// Written beside `path` and renamed.
void write_png(const std::string& path, const Picture& picture, const Texts& texts);

}  // namespace editar
