// A picture file's pixels before colours, transparency and orientation are applied: what png_file and jpeg_file give to
// picture_files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace editar {

struct Metadata {
    int width = 0, height = 0;  // as they are in the file, not turned upright
    int orientation = 1;
    std::optional<std::string> profile;  // ICC; empty if it is damaged
};

struct Decoded {
    enum class Space { grey, deep_grey, rgb, cmyk };
    Metadata metadata;
    Space space = Space::rgb;
    std::vector<uint8_t> colors;  // [H, W, channels]
    std::vector<uint16_t> deep;   // of deep_grey, [H, W], white is 65535
    std::vector<uint8_t> alpha;   // [H, W]; empty if all pixels are opaque

    int channels() const { return space == Space::rgb ? 3 : space == Space::cmyk ? 4 : 1; }
};

bool is_png(std::string_view file);
bool is_jpeg(std::string_view file);
// All throw EDITAR_BAD_PICTURE.
Decoded read_png(std::string_view file);
Decoded read_jpeg(std::string_view file);
Metadata read_png_metadata(std::string_view file);
Metadata read_jpeg_metadata(std::string_view file);

// Colours as 8-bit sRGB, grey or RGB by `colors.size()`: Space::grey stays grey where it has no profile or the profile
// is sRGB's.
void convert_to_srgb(Decoded& decoded);

}  // namespace editar
