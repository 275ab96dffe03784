// Errors with one sentence for the user: the value found, the values allowed, and what to run next.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "editar/editar.h"

namespace editar {

class Error : public std::exception {
public:
    Error(editar_status status, std::string message) : status_(status), message_(std::move(message)) {}
    editar_status status() const noexcept { return status_; }
    const char* what() const noexcept override { return message_.c_str(); }

private:
    editar_status status_;
    std::string message_;
};

// The logits are not finite, so no token can be sampled.
class NotFinite : public Error {
public:
    NotFinite() : Error(EDITAR_BACKEND_FAILED, "the decoder's logits are not finite; the engine or bundle is faulty") {}
};

// The classes of Python's errors, and the status that each becomes.
inline Error option_error(std::string message) {
    return {EDITAR_BAD_ARGUMENT, std::move(message)};
}
inline Error bundle_error(std::string message) {
    return {EDITAR_BAD_BUNDLE, std::move(message)};
}
inline Error missing_part(std::string message) {
    return {EDITAR_MISSING_PART, std::move(message)};
}
inline Error picture_error(std::string message) {
    return {EDITAR_BAD_PICTURE, std::move(message)};
}
inline Error backend_error(std::string message) {
    return {EDITAR_BACKEND_FAILED, std::move(message)};
}
inline Error unsupported(std::string message) {
    return {EDITAR_UNSUPPORTED, std::move(message)};
}

}  // namespace editar
