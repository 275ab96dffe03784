// What the tokenizers library does with every code point: generated, see unicode_tables.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace editar::unicode {

struct Decomposition {  // NFKD
    uint32_t from;
    uint16_t at, size;  // in `decomposed`
};
struct Range {
    uint32_t first, last;
    uint8_t value;
};
struct Composition {
    uint32_t first, second, into;
};
struct Lower {
    uint32_t from, into, and_then;  // and_then is 0 for none
};

// All sorted.
extern const Decomposition decompositions[];
extern const size_t decompositions_count;
extern const uint32_t decomposed[];
extern const Range classes[];  // combining classes above 0
extern const size_t classes_count;
extern const Composition compositions[];
extern const size_t compositions_count;
extern const Lower lowers[];
extern const size_t lowers_count;
extern const Range spaces[];
extern const size_t spaces_count;
// Of graphemes.
extern const Range controls[];
extern const size_t controls_count;
extern const Range extenders[];
extern const size_t extenders_count;
extern const Range prepended[];
extern const size_t prepended_count;

}  // namespace editar::unicode
