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

    editar_picture view() {
        auto picture = sized<editar_picture>();
        picture.data = data.data();
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
        image.data.resize(static_cast<size_t>(image.width) * image.height * image.channels);
        picture.data = image.data.data();
        check(editar_read_picture(file.data(), file.size(), &picture));
        return image;
    }

    // As a PNG with texts: pairs of names and values, ended by NULL.
    void write_png(const std::string& path, const char* const* texts = nullptr) {
        const editar_picture picture = view();
        check(editar_write_png(path.c_str(), &picture, texts));
    }
};

struct Result {
    bool stopped = false;  // the caller asked to stop; from `output.done` on, tokens are the source's
    std::vector<std::vector<int32_t>> tokens;  // of each variant
    std::vector<Image> images;
    editar_output output{};  // with pointers that are no longer valid
};

class Model;

// One picture and its edits. It must not outlive its model, and moves like a unique_ptr.
class Session {
public:
    // (tokens done, tokens in all, tokens of the first variant); false stops. An exception stops the edit, and is
    // thrown again out of `edit`.
    using Progress = std::function<bool(int32_t, int32_t, const int32_t*)>;
    using Preview = std::function<bool(int32_t, int32_t, const editar_picture&)>;

    // `request`: `size` need not be set. Its callbacks and `user` are replaced where `progress` or `preview` is given.
    Result edit(editar_request request, const Progress& progress = {}, const Preview& preview = {}) {
        struct Watching {
            const Progress& progress;
            const Preview& preview;
            std::exception_ptr thrown;
        } watching{progress, preview, nullptr};
        request.size = sizeof request;
        if (progress) {
            request.user = &watching;
            request.on_progress = [](void* user, int32_t done, int32_t total, const int32_t* tokens) -> int32_t {
                auto& own = *static_cast<Watching*>(user);
                try {
                    return own.progress(done, total, tokens) ? 0 : 1;
                } catch (...) {
                    own.thrown = std::current_exception();
                    return 1;
                }
            };
        }
        if (preview) {
            request.user = &watching;
            request.on_preview = [](void* user, int32_t done, int32_t total, const editar_picture* picture) -> int32_t {
                auto& own = *static_cast<Watching*>(user);
                try {
                    return own.preview(done, total, *picture) ? 0 : 1;
                } catch (...) {
                    own.thrown = std::current_exception();
                    return 1;
                }
            };
        }
        const size_t variants = request.variants > 0 ? static_cast<size_t>(request.variants) : 1;
        const size_t pixels = static_cast<size_t>(info_.image_size) * info_.image_size * 3;
        const auto count = static_cast<size_t>(info_.picture_tokens);
        std::vector<int32_t> tokens(variants * count);
        std::vector<uint8_t> rgb(variants * pixels);
        Result result;
        result.output = sized<editar_output>();
        result.output.tokens = tokens.data();
        result.output.rgb = rgb.data();
        const editar_status status = editar_edit(session_.get(), &request, &result.output);
        if (watching.thrown) std::rethrow_exception(watching.thrown);
        result.stopped = check(status) == EDITAR_STOPPED;
        for (size_t n = 0; n < variants; ++n) {
            result.tokens.emplace_back(tokens.begin() + n * count, tokens.begin() + (n + 1) * count);
            Image image;
            image.width = image.height = info_.image_size;
            image.data.assign(rgb.begin() + n * pixels, rgb.begin() + (n + 1) * pixels);
            result.images.push_back(std::move(image));
        }
        return result;
    }

    // How the last edit was made, for Image::write_png; valid until the next edit.
    const char* const* texts(int32_t variant = 0) const { return editar_get_texts(session_.get(), variant); }
    editar_session* get() const noexcept { return session_.get(); }

private:
    friend class Model;
    Session(editar_session* session, const editar_model_info& info) : session_(session), info_(info) {}
    struct Closer {
        void operator()(editar_session* session) const { editar_close_session(session); }
    };
    std::unique_ptr<editar_session, Closer> session_;
    editar_model_info info_;
};

// An open bundle; moves like a unique_ptr.
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

    const editar_model_info& info() const noexcept { return info_; }
    Session open(Image& image) {
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
