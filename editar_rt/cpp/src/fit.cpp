// Resizing with Pillow's Lanczos filter, bit by bit, and masks that lose no white pixel (editar_rt/images/fit.py).
#include <algorithm>
#include <cmath>

#include "error.h"
#include "facts.h"
#include "pictures.h"

namespace editar {

namespace {

constexpr int bits = 32 - 8 - 2;  // of a weight's fraction
constexpr double pi = 3.14159265358979323846;

struct Size {
    int width, height;
};
struct LongSize {  // of a picture that is scaled to a square but not cut: longer than any that is made
    int64_t width, height;
};
struct Box {
    double left, top, right, bottom;
};

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x = x * pi;
    return std::sin(x) / x;
}

double lanczos(double x) {
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

// The old pixels that each new one is made of along an axis, with their weights.
struct Weights {
    int taps = 0;  // room for each pixel
    std::vector<int> first, count;
    std::vector<int> values;  // fixed-point

    Weights(int length, double start, double stop, int scaled) {
        const double scale = (stop - start) / scaled, filter_scale = std::max(scale, 1.0);
        const double support = facts::pictures::LANCZOS_SUPPORT * filter_scale, step = 1.0 / filter_scale;
        taps = static_cast<int>(std::ceil(support)) * 2 + 1;
        values.resize(static_cast<size_t>(scaled) * static_cast<size_t>(taps));
        std::vector<double> own(static_cast<size_t>(taps));
        for (int pixel = 0; pixel < scaled; ++pixel) {
            const double center = start + (pixel + 0.5) * scale;
            const int from = std::max(static_cast<int>(center - support + 0.5), 0);
            const int to = std::min(static_cast<int>(center + support + 0.5), length);
            double sum = 0.0;
            for (int x = from; x < to; ++x) {
                const double weight = lanczos((x - center + 0.5) * step);
                own[static_cast<size_t>(x - from)] = weight;
                sum += weight;
            }
            for (int x = 0; x < to - from; ++x) {
                const double weight = sum != 0.0 ? own[static_cast<size_t>(x)] / sum : own[static_cast<size_t>(x)];
                const double fixed = weight * (1 << bits);
                values[static_cast<size_t>(pixel) * static_cast<size_t>(taps) + static_cast<size_t>(x)] =
                    static_cast<int>(weight < 0 ? fixed - 0.5 : fixed + 0.5);
            }
            first.push_back(from);
            count.push_back(std::max(to - from, 0));
        }
    }

    const int* of(int pixel) const { return values.data() + static_cast<size_t>(pixel) * static_cast<size_t>(taps); }
};

uint8_t clipped(int sum) {
    return static_cast<uint8_t>(std::clamp(sum >> bits, 0, 255));
}

Picture across(const Picture& from, int width, double left, double right) {
    if (width == from.width && left == 0 && right == width) return from;
    const Weights weights(from.width, left, right, width);
    Picture to{width, from.height, from.channels, {}};
    const auto channels = static_cast<size_t>(from.channels);
    to.data.resize(static_cast<size_t>(width) * static_cast<size_t>(from.height) * channels);
    uint8_t* out = to.data.data();
    for (int y = 0; y < from.height; ++y) {
        const uint8_t* line = from.data.data() + static_cast<size_t>(y) * static_cast<size_t>(from.width) * channels;
        for (int x = 0; x < width; ++x) {
            const int* weight = weights.of(x);
            const auto index = static_cast<size_t>(x);
            for (size_t channel = 0; channel < channels; ++channel) {
                const uint8_t* in = line + static_cast<size_t>(weights.first[index]) * channels + channel;
                int sum = 1 << (bits - 1);
                for (int i = 0; i < weights.count[index]; ++i) sum += in[static_cast<size_t>(i) * channels] * weight[i];
                *out++ = clipped(sum);
            }
        }
    }
    return to;
}

Picture down(const Picture& from, int height, double top, double bottom) {
    if (height == from.height && top == 0 && bottom == height) return from;
    const Weights weights(from.height, top, bottom, height);
    Picture to{from.width, height, from.channels, {}};
    const size_t stride = static_cast<size_t>(from.width) * static_cast<size_t>(from.channels);
    to.data.resize(stride * static_cast<size_t>(height));
    std::vector<int> sums(stride);
    for (int y = 0; y < height; ++y) {
        const auto index = static_cast<size_t>(y);
        std::fill(sums.begin(), sums.end(), 1 << (bits - 1));
        for (int i = 0; i < weights.count[index]; ++i) {
            const int weight = weights.of(y)[i];
            const uint8_t* line = from.data.data() + static_cast<size_t>(weights.first[index] + i) * stride;
            for (size_t x = 0; x < stride; ++x) sums[x] += line[x] * weight;
        }
        std::transform(sums.begin(), sums.end(), to.data.begin() + static_cast<std::ptrdiff_t>(index * stride),
                       clipped);
    }
    return to;
}

Picture cropped(const Picture& from, int left, int top, Size size) {
    Picture to{size.width, size.height, from.channels, {}};
    const auto channels = static_cast<size_t>(from.channels);
    const size_t line = static_cast<size_t>(size.width) * channels;
    for (int y = top; y < top + size.height; ++y) {
        const size_t at =
            (static_cast<size_t>(y) * static_cast<size_t>(from.width) + static_cast<size_t>(left)) * channels;
        to.data.insert(to.data.end(), from.data.begin() + static_cast<std::ptrdiff_t>(at),
                       from.data.begin() + static_cast<std::ptrdiff_t>(at + line));
    }
    return to;
}

// Across, then down, of the lines that contribute: `resize` of fit.py, roundings included.
Picture resized(const Picture& picture, Size size, const Box& box) {
    const double reach = facts::pictures::LANCZOS_SUPPORT * std::max(1.0, (box.bottom - box.top) / size.height);
    const int first = std::max(0, static_cast<int>(std::floor(box.top - reach)));
    const int last = std::min(picture.height, static_cast<int>(std::ceil(box.bottom + reach)));
    const bool whole = first == 0 && last == picture.height;
    const Picture lines = whole ? Picture{} : cropped(picture, 0, first, {picture.width, last - first});
    const Picture wide = across(whole ? picture : lines, size.width, box.left, box.right);
    return down(wide, size.height, box.top - first, box.bottom - first);
}

// The size at which the shorter side is `side`.
LongSize fitted_size(int width, int height, int side) {
    const double scale = static_cast<double>(side) / std::min(width, height);
    const auto scaled = [&](int length) {
        return std::max<int64_t>(side, static_cast<int64_t>(std::nearbyint(length * scale)));
    };
    return {scaled(width), scaled(height)};
}

// For each new pixel of the square along an axis, the old pixels whose centres lie in it, or the one that contains its
// centre: `_spans` of fit.py.
struct Span {
    int64_t first, last;
};
std::vector<Span> spans(int side, int64_t offset, int64_t length, int64_t scaled) {
    std::vector<Span> found;
    for (int64_t pixel = offset; pixel < offset + side; ++pixel) {
        const auto bound = [&](int64_t edge) { return (2 * edge * length + scaled) / (2 * scaled); };
        Span span = {bound(pixel), bound(pixel + 1)};
        if (span.last <= span.first) {
            span.first = (2 * pixel + 1) * length / (2 * scaled);
            span.last = span.first + 1;
        }
        found.push_back({std::clamp<int64_t>(span.first, 0, length - 1), std::clamp<int64_t>(span.last, 1, length)});
    }
    return found;
}

}  // namespace

Picture fit_square(const Picture& picture, int side) {
    const LongSize scaled = fitted_size(picture.width, picture.height, side);
    const double width = picture.width, height = picture.height;
    if (std::max(scaled.width, scaled.height) > int64_t{facts::pictures::LONG} * side) {
        // Resizing only the middle bounds the size of the resized picture.
        const double half = std::min(width, height) / 2;
        return resized(picture, {side, side},
                       {width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half});
    }
    const Size size = {static_cast<int>(scaled.width), static_cast<int>(scaled.height)};
    const Picture whole = resized(picture, size, {0, 0, width, height});
    return cropped(whole, (size.width - side) / 2, (size.height - side) / 2, {side, side});
}

std::vector<uint8_t> fit_mask(const Picture& mask, int width, int height, int side) {
    const double scale = std::max(static_cast<double>(mask.width) / width, static_cast<double>(mask.height) / height);
    if (std::fabs(mask.width - width * scale) > 1 || std::fabs(mask.height - height * scale) > 1)
        throw picture_error("the mask has " + sizes(mask.width, mask.height) + " pixels and the picture " +
                            sizes(width, height) +
                            ": a mask may have any size, but must have the picture's aspect ratio");
    const LongSize scaled = fitted_size(width, height, side);
    const auto columns = spans(side, (scaled.width - side) / 2, mask.width, scaled.width);
    const auto rows = spans(side, (scaled.height - side) / 2, mask.height, scaled.height);
    std::vector<uint8_t> square(static_cast<size_t>(side) * static_cast<size_t>(side));
    std::vector<uint8_t> line(static_cast<size_t>(mask.width));
    for (int y = 0; y < side; ++y) {
        std::fill(line.begin(), line.end(), 0);
        for (int64_t row = rows[static_cast<size_t>(y)].first; row < rows[static_cast<size_t>(y)].last; ++row)
            for (size_t x = 0; x < line.size(); ++x)
                line[x] |= mask.data[static_cast<size_t>(row) * line.size() + x] >= facts::pictures::THRESHOLD;
        for (int x = 0; x < side; ++x) {
            const Span& span = columns[static_cast<size_t>(x)];
            const auto first = line.begin() + span.first, last = line.begin() + span.last;
            square[static_cast<size_t>(y) * static_cast<size_t>(side) + static_cast<size_t>(x)] =
                std::find(first, last, 1) != last;
        }
    }
    return square;
}

}  // namespace editar
