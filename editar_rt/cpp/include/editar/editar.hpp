// editar.hpp - the C ABI of editar.h as C++17 classes: handles that close themselves, errors as exceptions.
// Header-only, so that no C++ type crosses the library's boundary.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "editar/editar.h"

namespace editar {
inline namespace v0 {  // so that a static build does not mix these with the classes inside the library

// A call that failed: its status, and one sentence.
class Exception : public std::runtime_error {
public:
    Exception(editar_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    editar_status status() const noexcept { return status_; }

private:
    editar_status status_;
};

// Throws where a status is an error; otherwise returns it.
inline editar_status check(editar_status status) {
    if (status < 0) throw Exception(status, editar_last_error());
    return status;
}

// A struct of editar.h with its size filled in and the rest 0.
template <typename T>
T sized() {
    T made{};
    made.size = sizeof(T);
    return made;
}

// An 8-bit picture that owns its pixels.
struct Image {
    int32_t width = 0, height = 0, channels = EDITAR_RGB;
    std::vector<uint8_t> data;

    // For functions that take a const editar_picture, which do not write to its data. Throws if `data` is too short for
    // the sizes.
    editar_picture view() const {
        const bool sized_well = width > 0 && height > 0 && channels > 0 && channels <= EDITAR_RGBA;
        if (sized_well &&
            data.size() / static_cast<size_t>(channels) / static_cast<size_t>(width) < static_cast<size_t>(height))
            throw Exception(EDITAR_BAD_ARGUMENT, "an image's data must have width * height * channels bytes, got " +
                                                     std::to_string(data.size()));
        auto picture = sized<editar_picture>();
        picture.data = const_cast<uint8_t*>(data.data());
        picture.width = width;
        picture.height = height;
        picture.channels = channels;
        return picture;
    }

    // From the bytes of a PNG or JPEG; with channels EDITAR_GREY, as a mask.
    static Image read(const std::vector<uint8_t>& file, int32_t channels = EDITAR_RGB) {
        auto picture = sized<editar_picture>();
        picture.channels = channels;
        check(editar_read_picture(file.data(), file.size(), &picture));
        Image image;
        image.width = picture.width;
        image.height = picture.height;
        image.channels = picture.channels;
        image.data.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) *
                          static_cast<size_t>(image.channels));
        picture.data = image.data.data();
        check(editar_read_picture(file.data(), file.size(), &picture));
        return image;
    }

    // As a PNG with texts: pairs of names and values, ended by NULL.
    void write_png(const std::string& path, const char* const* texts = nullptr) const {
        const editar_picture picture = view();
        check(editar_write_png(path.c_str(), &picture, texts));
    }
};

struct Result {
    bool stopped = false;  // the caller asked to stop; from `output.done` on, tokens are the source's
    std::vector<std::vector<int32_t>> tokens;  // of each variant
    std::vector<Image> images;
    std::vector<int32_t> passes;  // runs of the decoder after the prefill in which each variant took part
    editar_output output{};       // numbers and times; its pointers are null
};

class Model;

// One picture and its edits. It may outlive its model, and moves like a unique_ptr: one that was moved from can be
// assigned to and destroyed, and its calls throw.
class Session {
public:
    // (tokens done, tokens in all, tokens of the first variant); false stops. An exception stops the edit and is
    // thrown again by `edit`.
    using Progress = std::function<bool(int32_t, int32_t, const int32_t*)>;
    using Preview = std::function<bool(int32_t, int32_t, const editar_picture&)>;

    // `request`: `size` need not be set. Its callbacks and `user` are replaced if `progress` or `preview` is given.
    Result edit(editar_request request, const Progress& progress = {}, const Preview& preview = {}) {
        Watching watching{progress, preview, nullptr};
        request.size = sizeof request;
        if (progress || preview) {
            request.user = &watching;
            request.on_progress = progress ? &Watching::on_progress : nullptr;
            request.on_preview = preview ? &Watching::on_preview : nullptr;
        }
        // A number that the library refuses needs no memory.
        const size_t variants = request.variants < 1                     ? 1
                                : request.variants > EDITAR_MAX_VARIANTS ? 0
                                                                         : static_cast<size_t>(request.variants);
        const size_t pixels = static_cast<size_t>(side_) * static_cast<size_t>(side_) * 3,
                     count = static_cast<size_t>(count_);
        std::vector<int32_t> tokens(variants * count);
        std::vector<uint8_t> rgb(variants * pixels);
        Result result;
        result.output = sized<editar_output>();
        result.output.tokens = tokens.data();
        result.output.rgb = rgb.data();
        result.passes.resize(variants);
        result.output.passes = result.passes.data();
        const editar_status status = editar_edit(session_.get(), &request, &result.output);
        if (watching.thrown) std::rethrow_exception(watching.thrown);
        result.stopped = check(status) == EDITAR_STOPPED;
        result.output.tokens = nullptr;
        result.output.rgb = nullptr;
        result.output.passes = nullptr;
        for (size_t n = 0; n < variants; ++n) {
            result.tokens.emplace_back(tokens.data() + n * count, tokens.data() + (n + 1) * count);
            Image image;
            image.width = image.height = side_;
            image.data.assign(rgb.data() + n * pixels, rgb.data() + (n + 1) * pixels);
            result.images.push_back(std::move(image));
        }
        return result;
    }

    // How the last edit was made, for Image::write_png; valid until the next edit. Null if there was none.
    const char* const* texts(int32_t variant = 0) const {
        const char* const* given = nullptr;
        check(editar_get_texts(session_.get(), variant, &given));
        return given;
    }
    editar_session* get() const noexcept { return session_.get(); }

private:
    friend class Model;
    Session(editar_session* session, const editar_model_info& info)
        : session_(session), side_(info.image_size), count_(info.picture_tokens) {}
    struct Watching {  // what the callbacks get as `user`
        const Progress& progress;
        const Preview& preview;
        std::exception_ptr thrown;

        template <typename Body>
        int32_t guarded(Body body) noexcept {
            try {
                return body() ? 0 : 1;
            } catch (...) {
                thrown = std::current_exception();
                return 1;
            }
        }
        static int32_t EDITAR_CALL on_progress(void* user, int32_t done, int32_t total, const int32_t* tokens) {
            auto& own = *static_cast<Watching*>(user);
            return own.guarded([&] { return own.progress(done, total, tokens); });
        }
        static int32_t EDITAR_CALL on_preview(void* user, int32_t done, int32_t total, const editar_picture* picture) {
            auto& own = *static_cast<Watching*>(user);
            return own.guarded([&] { return own.preview(done, total, *picture); });
        }
    };
    struct Closer {
        void operator()(editar_session* session) const { editar_close_session(session); }
    };
    std::unique_ptr<editar_session, Closer> session_;
    int32_t side_, count_;  // of the model's pictures: pixels along a side, tokens
};

// An open bundle; moves as Session does.
class Model {
public:
    // `options`: `size` need not be set.
    explicit Model(const std::string& folder, editar_model_options options = {}) {
        options.size = sizeof options;
        editar_model* model = nullptr;
        check(editar_open_model(folder.c_str(), &options, &model));
        model_.reset(model);
        info_ = sized<editar_model_info>();
        check(editar_get_model_info(model, &info_));
    }

    // Its texts live as long as the model that this class holds.
    const editar_model_info& info() const noexcept { return info_; }
    Session open(const Image& image) {
        const editar_picture picture = image.view();
        editar_session* session = nullptr;
        check(editar_open_session(model_.get(), &picture, &session));
        return {session, info_};
    }
    editar_model* get() const noexcept { return model_.get(); }

private:
    struct Closer {
        void operator()(editar_model* model) const { editar_close_model(model); }
    };
    std::unique_ptr<editar_model, Closer> model_;
    editar_model_info info_{};
};

}  // namespace v0
}  // namespace editar
