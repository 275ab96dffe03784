// JSON values, read as strictly as Python's json module reads them, with a bound on their depth.
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
    std::string text;             // UTF-8 of a string, in which lone surrogates may be; or a number as it is written
    std::vector<Json> items;      // of a list
    std::vector<Member> members;  // of an object, in order; of equal names the last value counts, as in Python

    // Throws Error (EDITAR_BAD_BUNDLE) that begins with `where`.
    static Json parse(std::string_view text, const std::string& where);

    const Json* find(std::string_view name) const;  // a member of an object; null if there is none
    bool is_integer() const;                        // a number without fraction and exponent
    int64_t integer() const;                        // of an integer; saturates beyond 64 bits
    double number() const;                          // correctly rounded; beyond the largest, infinite
    const char* python_type() const;                // the name of the type that Python's json gives: int, NoneType, …
};

// Reject strings with control characters, names included: they can manipulate a terminal. Throws EDITAR_BAD_BUNDLE.
void check_strings(const Json& value, const std::string& where);
// A string as JSON text, as Python's json.dumps writes it (ASCII only).
std::string json_quoted(std::string_view text);
// A value as Python's repr() writes it, in ASCII, of at most `most` characters.
std::string shown(const Json& value, size_t most = 80);
// A number from its text in JSON, whatever the locale.
double read_number(const std::string& text);

}  // namespace editar
