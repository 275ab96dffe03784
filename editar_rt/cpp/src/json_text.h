// Writes JSON as Python's json.dumps does.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "json.h"
#include "sampling.h"

namespace editar {

class JsonText {
public:
    static JsonText object() { return {'{', '}'}; }
    static JsonText list() { return {'[', ']'}; }
    static JsonText raw(std::string text) {
        JsonText made;
        made.text_ = std::move(text);
        return made;
    }

    template <typename T>
    JsonText& set(std::string_view name, const T& value) {
        return put(json_quoted(name) + ": " + written(value));
    }
    template <typename T>
    JsonText& add(const T& value) {
        return put(written(value));
    }
    std::string text() const { return close_ == '\0' ? text_ : text_ + close_; }

private:
    JsonText() = default;
    JsonText(char open, char close) : text_(1, open), close_(close) {}
    JsonText& put(const std::string& text) {
        text_ += (text_.size() > 1 ? ", " : "") + text;
        return *this;
    }
    static std::string written(const JsonText& value) { return value.text(); }
    static std::string written(const std::string& value) { return json_quoted(value); }
    static std::string written(const char* value) { return json_quoted(value); }
    static std::string written(bool value) { return value ? "true" : "false"; }
    static std::string written(int32_t value) { return std::to_string(value); }
    static std::string written(int64_t value) { return std::to_string(value); }
    static std::string written(double value) { return std::isfinite(value) ? python_repr(value) : "null"; }

    std::string text_;
    char close_ = '\0';
};

}  // namespace editar
