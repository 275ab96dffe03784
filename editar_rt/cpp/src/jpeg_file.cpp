// JPEG files, with TurboJPEG: pixels as Pillow reads them.
#include "decoded.h"
#include "error.h"
#include "exif.h"
#include "pictures.h"

#ifdef EDITAR_PICTURE_FILES
#include <turbojpeg.h>

#include <algorithm>
#include <memory>

namespace editar {

namespace {

[[noreturn]] void unreadable(const std::string& reason) {
    throw picture_error("the picture cannot be read (" + reason + "); is it truncated?");
}

bool starts_with(std::string_view text, std::string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

// What the markers say, up to the first scan; and whether the file has an end, which the decoder only warns about.
class Markers {
public:
    explicit Markers(std::string_view file) : file_(file) {
        size_t at = 2;
        while (!scan_begins_) segment(at);
        if (components_ == 0) unreadable("no frame before its pixels");
        check_end(at);
    }

    int components() const { return components_; }

    Metadata metadata() const {
        Metadata metadata;
        metadata.width = width_;
        metadata.height = height_;
        metadata.orientation = orientation(exif_, xmp_);
        metadata.profile = profile_;
        return metadata;
    }

private:
    size_t number(size_t at) const {
        if (at + 2 > file_.size()) unreadable("the file ends among its markers");
        return static_cast<size_t>(static_cast<uint8_t>(file_[at]) << 8 | static_cast<uint8_t>(file_[at + 1]));
    }

    void segment(size_t& at) {
        // Anything up to 0xFF is skipped, and so are repeated ones.
        at = file_.find('\xff', at);
        while (at < file_.size() && file_[at] == '\xff') ++at;
        if (at >= file_.size()) unreadable("the file ends among its markers");
        const auto marker = static_cast<uint8_t>(file_[at++]);
        if (marker == 0 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) return;  // without content
        if (marker == 0xD9) unreadable("the file ends before its pixels");
        const size_t size = number(at);
        if (size < 2 || size > file_.size() - at) unreadable("a marker's content is not whole");
        content(marker, file_.substr(at + 2, size - 2));
        at += size;
    }

    void content(uint8_t marker, std::string_view data) {
        constexpr std::string_view exif_head("Exif\0\0", 6), icc_head("ICC_PROFILE\0", 12);
        constexpr std::string_view xmp_head("http://ns.adobe.com/xap/1.0/\0", 29);
        const bool is_frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
        if (is_frame) frame(data);
        if (marker == 0xDA) scan_begins_ = true;
        if (marker == 0xE1 && starts_with(data, exif_head)) {
            // Long EXIF goes on in the next segment.
            exif_ += exif_.empty() ? data : data.substr(exif_head.size());
        } else if (marker == 0xE1 && starts_with(data, xmp_head)) {
            xmp_ = data.substr(xmp_head.size());
        } else if (marker == 0xE2 && starts_with(data, icc_head)) {
            if (data.size() < 14) unreadable("a part of its colour profile is too short");
            profile_parts_.push_back(data);
        }
    }

    void frame(std::string_view data) {
        if (data.size() < 6) unreadable("its frame is too short");
        if (data[0] != 8) unreadable(std::to_string(static_cast<uint8_t>(data[0])) + " bits per channel");
        const auto at = [data](size_t i) { return static_cast<uint8_t>(data[i]); };
        height_ = at(1) << 8 | at(2);
        width_ = at(3) << 8 | at(4);
        components_ = at(5);
        if (profile_parts_.empty()) return;
        std::sort(profile_parts_.begin(), profile_parts_.end());
        std::string profile;
        if (static_cast<uint8_t>(profile_parts_[0][13]) == profile_parts_.size())
            for (const auto part : profile_parts_) profile += part.substr(14);
        profile_ = std::move(profile);
        profile_parts_.clear();
    }

    void check_end(size_t at) const {
        for (;;) {
            at = file_.find('\xff', at);
            if (at == std::string_view::npos || at + 1 >= file_.size()) unreadable("its pixels end too early");
            const auto marker = static_cast<uint8_t>(file_[++at]);
            if (marker == 0xD9) return;
            const bool is_segment = marker >= 0xC0 && marker != 0xFF && !(marker >= 0xD0 && marker <= 0xD8);
            if (is_segment) at += 1 + std::max<size_t>(number(at + 1), 2);
        }
    }

    std::string_view file_;
    int width_ = 0, height_ = 0, components_ = 0;
    bool scan_begins_ = false;
    std::string exif_, xmp_;
    std::vector<std::string_view> profile_parts_;
    std::optional<std::string> profile_;
};

struct Destroy {
    void operator()(void* handle) const { tjDestroy(handle); }
};

}  // namespace

bool is_jpeg(std::string_view file) {
    return starts_with(file, "\xff\xd8\xff");
}

Metadata read_jpeg_metadata(std::string_view file) {
    Metadata metadata = Markers(file).metadata();
    check_size(metadata.width, metadata.height);
    return metadata;
}

Decoded read_jpeg(std::string_view file) {
    const Markers markers(file);
    Decoded decoded;
    decoded.metadata = markers.metadata();
    check_size(decoded.metadata.width, decoded.metadata.height);
    const std::unique_ptr<void, Destroy> decoder(tjInitDecompress());
    if (!decoder) throw std::bad_alloc();
    const auto failed = [&decoder] { unreadable(tjGetErrorStr2(decoder.get())); };
    const auto* data = reinterpret_cast<const unsigned char*>(file.data());
    const auto size = static_cast<unsigned long>(file.size());
    int width = 0, height = 0, subsampling = 0, space = 0;
    // Damage is a warning, and the file is read as far as it goes, as in Pillow.
    const auto check = [&](int result) {
        if (result != 0 && tjGetErrorCode(decoder.get()) != TJERR_WARNING) failed();
    };
    check(tjDecompressHeader3(decoder.get(), data, size, &width, &height, &subsampling, &space));
    if (width != decoded.metadata.width || height != decoded.metadata.height) unreadable("it has frames of two sizes");
    const int components = markers.components();
    const bool is_cmyk = space == TJCS_CMYK || space == TJCS_YCCK;
    if (components != (space == TJCS_GRAY ? 1 : is_cmyk ? 4 : 3))
        unreadable(std::to_string(components) + " components");
    decoded.space = is_cmyk ? Decoded::Space::cmyk : components == 1 ? Decoded::Space::grey : Decoded::Space::rgb;
    const int format = is_cmyk ? TJPF_CMYK : components == 1 ? TJPF_GRAY : TJPF_RGB;
    decoded.colors.resize(static_cast<size_t>(width) * static_cast<size_t>(height) *
                          static_cast<size_t>(decoded.channels()));
    // A file of very many scans is refused.
    check(tjDecompress2(decoder.get(), data, size, decoded.colors.data(), width, 0, height, format,
                        TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS));
    if (is_cmyk)  // Adobe's convention: inks are stored inverted
        for (auto& value : decoded.colors) value = static_cast<uint8_t>(255 - value);
    return decoded;
}

}  // namespace editar

#endif
