// JSON values, read strictly: bounded depth, strict UTF-8, numbers as their text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace editar {

class Json {
public:
    enum class Kind { null, boolean, number, string, list, object };
    using Member = std::pair<std::string, Json>;

    Kind kind = Kind::null;
    bool boolean = false;
    std::string text;             // of a string, or of a number as it is written
    std::vector<Json> items;      // of a list
    std::vector<Member> members;  // of an object, in order; of equal names the last one counts, as in Python

    // Throws Error (EDITAR_BAD_BUNDLE) that begins with `where`.
    static Json parse(std::string_view text, const std::string& where);

    const Json* find(std::string_view name) const;  // a member of an object; null if there is none
    bool is_integer() const;                        // a number without fraction and exponent
    int64_t integer() const;                        // of an integer; saturates beyond 64 bits
    double number() const;                          // correctly rounded
};

// A string as JSON text, as Python's json.dumps writes it (ASCII only).
std::string quoted(std::string_view text);

}  // namespace editar
