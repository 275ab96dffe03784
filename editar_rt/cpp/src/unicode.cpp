#include "unicode.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "text.h"
#include "unicode_tables.h"

namespace editar::unicode {

namespace {

// Hangul syllables are decomposed and composed by arithmetic.
constexpr uint32_t syllables = 0xAC00, leading = 0x1100, vowels = 0x1161, trailing = 0x11A7;  // trailing 0 is none
constexpr uint32_t leading_count = 19, vowel_count = 21, trailing_count = 28;
constexpr uint32_t syllable_count = leading_count * vowel_count * trailing_count;

const Range* find(const Range* ranges, size_t count, uint32_t c) {
    const Range* found =
        std::lower_bound(ranges, ranges + count, c, [](const Range& range, uint32_t x) { return range.last < x; });
    return found != ranges + count && found->first <= c ? found : nullptr;
}

uint8_t combining_class(uint32_t c) {
    if (c < 0x300) return 0;
    const Range* found = find(classes, classes_count, c);
    return found ? found->value : 0;
}

void decompose(uint32_t c, std::u32string& out) {
    if (c < 0xA0) {
        out.push_back(c);
    } else if (c - syllables < syllable_count) {
        const uint32_t index = c - syllables;
        out.push_back(leading + index / (vowel_count * trailing_count));
        out.push_back(vowels + index / trailing_count % vowel_count);
        if (index % trailing_count != 0) out.push_back(trailing + index % trailing_count);
    } else {
        const Decomposition* end = decompositions + decompositions_count;
        const Decomposition* found = std::lower_bound(
            decompositions, end, c, [](const Decomposition& each, uint32_t x) { return each.from < x; });
        if (found == end || found->from != c) {
            out.push_back(c);
        } else {
            for (size_t i = 0; i < found->size; ++i) out.push_back(decomposed[found->at + i]);
        }
    }
}

// The character that two become; 0 for none.
uint32_t composed(uint32_t first, uint32_t second) {
    if (first - leading < leading_count && second - vowels < vowel_count)
        return syllables + ((first - leading) * vowel_count + (second - vowels)) * trailing_count;
    if (first - syllables < syllable_count && (first - syllables) % trailing_count == 0 && second > trailing &&
        second < trailing + trailing_count)
        return first + (second - trailing);
    const Composition* end = compositions + compositions_count;
    const Composition* found = std::lower_bound(
        compositions, end, std::pair(first, second),
        [](const Composition& each, const auto& pair) { return std::pair(each.first, each.second) < pair; });
    return found != end && found->first == first && found->second == second ? found->into : 0;
}

// Sort the marks behind each character by their classes.
void put_in_order(std::u32string& text) {
    const auto by_class = [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); };
    const auto is_mark = [](uint32_t c) { return combining_class(c) != 0; };
    for (auto at = text.begin(); at != text.end();) {
        const auto start = std::find_if(at, text.end(), is_mark);
        at = std::find_if_not(start, text.end(), is_mark);
        if (at - start > 1) std::stable_sort(start, at, by_class);
    }
}

std::u32string compose(const std::u32string& text) {
    std::u32string out;
    size_t starter = 0;
    bool has_starter = false;
    int last = -1;  // class of the mark before, or -1 where the starter itself is before
    for (const uint32_t c : text) {
        const int own = combining_class(c);
        if (has_starter && last < own) {
            if (const uint32_t into = composed(out[starter], c)) {
                out[starter] = into;
                continue;
            }
        }
        if (own == 0) {
            starter = out.size();
            has_starter = true;
        }
        last = own == 0 ? -1 : own;
        out.push_back(c);
    }
    return out;
}

bool is_control(uint32_t c) {
    return find(controls, controls_count, c) != nullptr;
}

}  // namespace

std::u32string code_points(const std::string& utf8) {
    std::u32string text;
    for (size_t at = 0; at < utf8.size();) text.push_back(next_code_point(utf8, at));
    return text;
}

std::string as_utf8(const std::u32string& text) {
    std::string utf8;
    for (const uint32_t c : text) append_utf8(utf8, c);
    return utf8;
}

std::u32string nfkc(const std::u32string& text) {
    std::u32string apart;
    for (const uint32_t c : text) decompose(c, apart);
    put_in_order(apart);
    return compose(apart);
}

std::u32string lower_case(const std::u32string& text) {
    std::u32string out;
    for (const uint32_t c : text) {
        const Lower* end = lowers + lowers_count;
        const Lower* found =
            std::lower_bound(lowers, end, c, [](const Lower& each, uint32_t x) { return each.from < x; });
        const bool changes = found != end && found->from == c;
        out.push_back(changes ? found->into : c);
        if (changes && found->and_then != 0) out.push_back(found->and_then);
    }
    return out;
}

bool is_space(uint32_t c) {
    return find(spaces, spaces_count, c) != nullptr;
}

size_t grapheme_end(const std::u32string& text, size_t at) {
    while (++at < text.size()) {
        const uint32_t before = text[at - 1], c = text[at];
        if (before == '\r' && c == '\n') continue;
        if (is_control(before) || is_control(c)) break;
        if (find(extenders, extenders_count, c) || find(prepended, prepended_count, before)) continue;
        break;
    }
    return at;
}

}  // namespace editar::unicode
