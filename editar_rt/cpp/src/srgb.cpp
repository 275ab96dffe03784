// Colours to sRGB by their ICC profile, with Little CMS as Pillow uses it (editar_rt/images/color.py).
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "decoded.h"
#include "error.h"

#ifdef EDITAR_COLOR_PROFILES
#include <lcms2.h>
#endif

namespace editar {

namespace {

using Space = Decoded::Space;
using Curves = std::array<std::array<uint8_t, 3>, 256>;  // the sRGB of every grey

// The nearest 8-bit value of deep grey.
[[maybe_unused]] uint8_t rounded(double value) {
    return static_cast<uint8_t>(std::clamp(value, 0.0, 255.0) + 0.5);
}

float deep_value(uint16_t value) {
    return std::min(static_cast<float>(value) * static_cast<float>(255 / 65535.0), 255.0F);
}

// Without a profile: grey to 8 bits, inks to RGB as Pillow does it.
void convert_plainly(Decoded& decoded) {
    if (decoded.space == Space::deep_grey) {
        decoded.colors.resize(decoded.deep.size());
        std::transform(decoded.deep.begin(), decoded.deep.end(), decoded.colors.begin(),
                       [](uint16_t value) { return static_cast<uint8_t>(deep_value(value) + 0.5F); });
        decoded.deep = {};
        decoded.space = Space::grey;
    } else if (decoded.space == Space::cmyk) {
        std::vector<uint8_t> rgb(decoded.colors.size() / 4 * 3);
        for (size_t i = 0; i < rgb.size(); ++i) {
            const uint8_t* inks = decoded.colors.data() + i / 3 * 4;
            const int light = 255 - inks[3], product = inks[i % 3] * light + 128;
            rgb[i] = static_cast<uint8_t>(std::max(light - ((product + (product >> 8)) >> 8), 0));
        }
        decoded.colors = std::move(rgb);
        decoded.space = Space::rgb;
    }
}

#ifdef EDITAR_COLOR_PROFILES

struct Close {
    void operator()(cmsContext context) const { cmsDeleteContext(context); }
};
struct CloseProfile {
    void operator()(void* profile) const { cmsCloseProfile(profile); }
};
struct CloseTransform {
    void operator()(void* transform) const { cmsDeleteTransform(transform); }
};

class Conversion {
public:
    Conversion(const std::string& profile, Space space) : context_(cmsCreateContext(nullptr, nullptr)) {
        if (!context_ || profile.empty()) return;
        using Profile = std::unique_ptr<void, CloseProfile>;
        const Profile source(
            cmsOpenProfileFromMemTHR(context_.get(), profile.data(), static_cast<cmsUInt32Number>(profile.size())));
        const Profile target(cmsCreate_sRGBProfileTHR(context_.get()));
        if (!source || !target) return;
        const bool is_grey = space == Space::grey || space == Space::deep_grey;
        const auto own = cmsGetColorSpace(source.get());
        // Grey that was written with its program's RGB profile is usual.
        const bool fits = is_grey                ? own == cmsSigGrayData || own == cmsSigRgbData
                          : space == Space::cmyk ? own == cmsSigCmykData
                                                 : own == cmsSigRgbData;
        if (!fits) return;
        from_grey_ = own == cmsSigGrayData;
        const cmsUInt32Number format = from_grey_ ? TYPE_GRAY_8 : space == Space::cmyk ? TYPE_CMYK_8 : TYPE_RGB_8;
        // The shortcut for grey is wrong in the shadows.
        const cmsUInt32Number flags = cmsFLAGS_BLACKPOINTCOMPENSATION | (is_grey ? cmsFLAGS_NOOPTIMIZE : 0);
        transform_.reset(cmsCreateTransformTHR(context_.get(), source.get(), format, target.get(), TYPE_RGB_8,
                                               INTENT_RELATIVE_COLORIMETRIC, flags));
    }

    bool good() const { return transform_ != nullptr; }

    void apply(const uint8_t* from, uint8_t* to, size_t pixels) const {
        cmsDoTransform(transform_.get(), from, to, static_cast<cmsUInt32Number>(pixels));
    }

    Curves curves() const {
        Curves found{};
        std::vector<uint8_t> greys;
        for (int grey = 0; grey < 256; ++grey)
            greys.insert(greys.end(), from_grey_ ? 1 : 3, static_cast<uint8_t>(grey));
        apply(greys.data(), found[0].data(), 256);
        return found;
    }

    // Whether colours spread over RGB stay as they are, up to rounding.
    bool is_identity() const {
        std::vector<uint8_t> lattice;
        const auto value = [](int step) { return static_cast<uint8_t>(255 * step / 8); };
        for (int i = 0; i < 9 * 9 * 9; ++i)
            lattice.insert(lattice.end(), {value(i % 9), value(i / 9 % 9), value(i / 81)});
        std::vector<uint8_t> seen(lattice.size());
        apply(lattice.data(), seen.data(), seen.size() / 3);
        return std::equal(seen.begin(), seen.end(), lattice.begin(), [](int a, int b) { return std::abs(a - b) <= 1; });
    }

private:
    std::unique_ptr<std::remove_pointer_t<cmsContext>, Close> context_;
    std::unique_ptr<void, CloseTransform> transform_;
    bool from_grey_ = false;
};

void convert_grey(Decoded& decoded, const Curves& curves) {
    const bool is_deep = decoded.space == Space::deep_grey;
    const size_t pixels = is_deep ? decoded.deep.size() : decoded.colors.size();
    std::vector<uint8_t> rgb(3 * pixels);
    for (size_t i = 0; i < rgb.size(); ++i) {
        const size_t pixel = i / 3, channel = i % 3;
        if (!is_deep) {
            rgb[i] = curves[decoded.colors[pixel]][channel];
            continue;
        }
        // Between the 256 greys the curves are practically straight.
        const double value = deep_value(decoded.deep[pixel]);
        const auto below = static_cast<size_t>(value);
        const double low = curves[below][channel], high = curves[std::min<size_t>(below + 1, 255)][channel];
        rgb[i] = rounded((high - low) * (value - static_cast<double>(below)) + low);
    }
    decoded.colors = std::move(rgb);
    decoded.deep = {};
    decoded.space = Space::rgb;
}

bool changes_grey(const Curves& curves) {
    for (int grey = 0; grey < 256; ++grey)
        for (const int value : curves[static_cast<size_t>(grey)])
            if (std::abs(value - grey) > 1) return true;
    return false;
}

void convert_by_profile(Decoded& decoded) {
    const Conversion conversion(*decoded.metadata.profile, decoded.space);
    if (!conversion.good()) return;  // damaged, or of another kind of colours: they are taken as sRGB
    if (decoded.space == Space::grey || decoded.space == Space::deep_grey) {
        const Curves curves = conversion.curves();
        if (changes_grey(curves)) convert_grey(decoded, curves);
        return;
    }
    const bool is_rgb = decoded.space == Space::rgb;
    if (is_rgb && conversion.is_identity()) return;
    const auto pixels = decoded.colors.size() / static_cast<size_t>(decoded.channels());
    std::vector<uint8_t> rgb(3 * pixels);
    conversion.apply(decoded.colors.data(), rgb.data(), pixels);
    decoded.colors = std::move(rgb);
    decoded.space = Space::rgb;
}

#else

void convert_by_profile(Decoded&) {
    throw unsupported(
        "the picture has a colour profile, and this library was built without Little CMS; convert the picture to sRGB "
        "without a profile");
}

#endif

}  // namespace

void convert_to_srgb(Decoded& decoded) {
    if (decoded.metadata.profile && !decoded.metadata.profile->empty()) convert_by_profile(decoded);
    convert_plainly(decoded);
}

}  // namespace editar
