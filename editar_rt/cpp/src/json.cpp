#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>

#include "error.h"
#include "facts.h"
#include "text.h"

namespace editar {

namespace {

constexpr size_t most_digits = 4300;  // of an integer, as in Python

class Parser {
public:
    Parser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

    Json document() {
        Json value = parse(0);
        skip_space();
        if (at_ != text_.size()) fail("more text after the value");
        return value;
    }

private:
    Json parse(int level) {
        if (level >= facts::MAX_JSON_DEPTH)
            throw bundle_error(where_ + " is nested more than " + std::to_string(facts::MAX_JSON_DEPTH) +
                               " levels deep, or is not JSON; export the bundle again");
        skip_space();
        Json value;
        switch (peek()) {
            case '{':
                object(value, level);
                break;
            case '[':
                list(value, level);
                break;
            case '"':
                value.kind = Json::Kind::string;
                value.text = string();
                break;
            case 't':
            case 'f':
                value.kind = Json::Kind::boolean;
                value.boolean = peek() == 't';
                word(value.boolean ? "true" : "false");
                break;
            case 'n':
                word("null");
                break;
            default:
                number(value);
        }
        return value;
    }

    void object(Json& value, int level) {
        value.kind = Json::Kind::object;
        ++at_;
        skip_space();
        if (take('}')) return;
        do {
            skip_space();
            if (peek() != '"') fail("expected a name in double quotes");
            std::string name = string();
            skip_space();
            if (!take(':')) fail("expected ':'");
            value.members.emplace_back(std::move(name), parse(level + 1));
            skip_space();
        } while (take(','));
        if (!take('}')) fail("expected ',' or '}'");
        drop_repeated(value.members);
    }

    // Of equal names, the first place and the last value stay.
    static void drop_repeated(std::vector<Json::Member>& members) {
        std::vector<size_t> order(members.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = i;
        const auto before = [&](size_t a, size_t b) { return members[a].first < members[b].first; };
        std::stable_sort(order.begin(), order.end(), before);
        std::vector<bool> dropped(members.size());
        for (size_t i = 0, first = 0; i < order.size(); ++i) {
            if (members[order[i]].first != members[order[first]].first) first = i;
            if (first == i) continue;
            members[order[first]].second = std::move(members[order[i]].second);
            dropped[order[i]] = true;
        }
        size_t kept = 0;
        for (size_t i = 0; i < members.size(); ++i) {
            if (dropped[i]) continue;
            if (kept != i) members[kept] = std::move(members[i]);
            ++kept;
        }
        members.resize(kept);
    }

    void list(Json& value, int level) {
        value.kind = Json::Kind::list;
        ++at_;
        skip_space();
        if (take(']')) return;
        do {
            value.items.push_back(parse(level + 1));
            skip_space();
        } while (take(','));
        if (!take(']')) fail("expected ',' or ']'");
    }

    std::string string() {
        std::string out;
        ++at_;
        for (;;) {
            if (at_ == text_.size()) fail("a string without end");
            const char c = text_[at_];
            if (static_cast<uint8_t>(c) < 0x20) fail("a control character in a string");
            ++at_;
            if (c == '"') return out;
            if (c == '\\')
                escape(out);
            else
                out.push_back(c);
        }
    }

    void escape(std::string& out) {
        static constexpr char letters[] = "\"\\/bfnrt";
        static constexpr char meant[] = "\"\\/\b\f\n\r\t";
        const char c = peek();
        if (c == 'u') {
            uint32_t unit = hex();
            if (unit >= 0xD800 && unit < 0xDC00 && text_.substr(at_, 2) == "\\u") {
                const size_t behind = at_;
                ++at_;
                const uint32_t low = hex();
                if (low >= 0xDC00 && low < 0xE000)
                    unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                else
                    at_ = behind;
            }
            append_utf8(out, unit);
            return;
        }
        for (size_t i = 0; letters[i]; ++i) {
            if (c != letters[i]) continue;
            out.push_back(meant[i]);
            ++at_;
            return;
        }
        fail("an unknown escape in a string");
    }

    uint32_t hex() {  // behind 'u', at which it stands
        uint32_t value = 0;
        ++at_;
        for (int i = 0; i < 4; ++i) {
            const char c = peek();
            const uint32_t digit = c >= '0' && c <= '9'   ? static_cast<uint32_t>(c - '0')
                                   : c >= 'a' && c <= 'f' ? static_cast<uint32_t>(c - 'a' + 10)
                                   : c >= 'A' && c <= 'F' ? static_cast<uint32_t>(c - 'A' + 10)
                                                          : 16;
            if (digit == 16) fail("an escape \\u without four hexadecimal digits");
            value = value << 4 | digit;
            ++at_;
        }
        return value;
    }

    void number(Json& value) {
        value.kind = Json::Kind::number;
        const size_t start = at_;
        if (peek() == 'N') {
            word("NaN");
        } else {
            take('-');
            if (peek() == 'I') {
                word("Infinity");
            } else if (!take('0')) {
                digits("expected a value");
            }
            if (peek() == '.' && is_digit(at_ + 1)) {
                ++at_;
                digits("");
            }
            if (peek() == 'e' || peek() == 'E') {
                const size_t sign = at_ + 1 < text_.size() && (text_[at_ + 1] == '+' || text_[at_ + 1] == '-') ? 1 : 0;
                if (is_digit(at_ + 1 + sign)) {
                    at_ += 1 + sign;
                    digits("");
                }
            }
        }
        value.text = std::string(text_.substr(start, at_ - start));
        if (value.text.size() > most_digits && value.is_integer()) fail("an integer of thousands of digits");
    }

    void digits(const char* what) {
        if (!is_digit(at_)) fail(what);
        while (is_digit(at_)) ++at_;
    }

    bool is_digit(size_t at) const { return at < text_.size() && text_[at] >= '0' && text_[at] <= '9'; }

    void word(std::string_view expected) {
        if (text_.substr(at_, expected.size()) != expected) fail("expected a value");
        at_ += expected.size();
    }

    void skip_space() {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
            ++at_;
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    bool take(char c) {
        if (at_ == text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    [[noreturn]] void fail(const std::string& what) const {
        const std::string_view before = text_.substr(0, at_);
        const auto line = 1 + std::count(before.begin(), before.end(), '\n');
        const size_t begin = before.rfind('\n');
        const size_t column = begin == std::string_view::npos ? at_ + 1 : at_ - begin;
        throw bundle_error(where_ + " is not JSON (" + what + ": line " + std::to_string(line) + " column " +
                           std::to_string(column) + "); export the bundle again");
    }

    std::string_view text_;
    const std::string& where_;
    size_t at_ = 0;
};

bool is_unprintable(uint32_t c) {
    for (const auto& range : facts::UNPRINTABLE)
        if (c >= range.first && c <= range.last) return true;
    return false;
}

void check_string(std::string_view text, const std::string& where) {
    for (size_t at = 0; at < text.size();)
        if (is_unprintable(next_code_point(text, at)))
            throw bundle_error(where + " has control characters in the string " + shown(text) + "; do not trust it");
}

}  // namespace

Json Json::parse(std::string_view text, const std::string& where) {
    if (!is_utf8(text)) throw bundle_error(where + " is not UTF-8 text; export the bundle again");
    return Parser(text, where).document();
}

const Json* Json::find(std::string_view name) const {
    for (const auto& member : members)
        if (member.first == name) return &member.second;
    return nullptr;
}

bool Json::is_integer() const {
    return kind == Kind::number && text.find_first_not_of("-0123456789") == std::string::npos;
}

int64_t Json::integer() const {
    const bool negative = text[0] == '-';
    const uint64_t most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) + (negative ? 1 : 0);
    uint64_t value = 0;
    for (size_t i = negative ? 1 : 0; i < text.size(); ++i) {
        const auto digit = static_cast<uint64_t>(text[i] - '0');
        value = value > (most - digit) / 10 ? most : value * 10 + digit;
    }
    return static_cast<int64_t>(negative ? 0 - value : value);
}

double Json::number() const {
    return read_number(text);
}

double read_number(const std::string& text) {
    if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
    const bool negative = text[0] == '-';
    double value = std::numeric_limits<double>::infinity();
    if (text.find('I') != std::string::npos) return negative ? -value : value;
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    stream >> value;
    // Beyond the range the stream gives the largest number, Python infinity; numbers next to 0 are as they are.
    if (stream.fail() && (value > 1 || value < -1)) value = value > 0 ? HUGE_VAL : -HUGE_VAL;
    return value;
}

const char* Json::python_type() const {
    switch (kind) {
        case Kind::null:
            return "NoneType";
        case Kind::boolean:
            return "bool";
        case Kind::number:
            return is_integer() ? "int" : "float";
        case Kind::string:
            return "str";
        case Kind::list:
            return "list";
        case Kind::object:
            return "dict";
    }
    return "";
}

void check_strings(const Json& value, const std::string& where) {
    if (value.kind == Json::Kind::string) check_string(value.text, where);
    for (const auto& item : value.items) check_strings(item, where);
    for (const auto& member : value.members) {
        check_string(member.first, where);
        check_strings(member.second, where);
    }
}

std::string json_quoted(std::string_view text) {
    std::string out = "\"";
    for (size_t at = 0; at < text.size();) {
        const uint32_t c = next_code_point(text, at);
        static constexpr char meant[] = "\"\\\n\r\t\f\b";
        static constexpr char letters[] = "\"\\nrtfb";
        const char* found = c != 0 && c < 0x80 ? std::char_traits<char>::find(meant, 7, static_cast<char>(c)) : nullptr;
        char escape[16];
        if (found) {
            out += {'\\', letters[found - meant]};
        } else if (c >= 0x20 && c < 0x7F) {
            out.push_back(static_cast<char>(c));
        } else if (c < 0x10000) {
            std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
            out += escape;
        } else {
            const auto high = static_cast<unsigned>(0xD800 + ((c - 0x10000) >> 10));
            const auto low = static_cast<unsigned>(0xDC00 + ((c - 0x10000) & 0x3FF));
            std::snprintf(escape, sizeof escape, "\\u%04x\\u%04x", high, low);
            out += escape;
        }
    }
    return out + "\"";
}

std::string shown(const Json& value, size_t most) {
    std::string out;
    switch (value.kind) {
        case Json::Kind::null:
            return "None";
        case Json::Kind::boolean:
            return value.boolean ? "True" : "False";
        case Json::Kind::number:
            return value.text.substr(0, most);
        case Json::Kind::string:
            return shown(value.text, most);
        case Json::Kind::list:
            for (const auto& item : value.items) {
                out += out.empty() ? "[" : ", ";
                out += shown(item, most);
                if (out.size() >= most) return out.substr(0, most);
            }
            return out.empty() ? "[]" : (out + "]").substr(0, most);
        case Json::Kind::object:
            for (const auto& member : value.members) {
                out += (out.empty() ? "{" : ", ") + shown(member.first, most) + ": " + shown(member.second, most);
                if (out.size() >= most) return out.substr(0, most);
            }
            return out.empty() ? "{}" : (out + "}").substr(0, most);
    }
    return out;
}

}  // namespace editar
