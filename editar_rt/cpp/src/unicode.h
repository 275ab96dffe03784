// Normalization, lower case and graphemes, as the tokenizers library has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace editar::unicode {

std::u32string code_points(const std::string& utf8);
std::string as_utf8(const std::u32string& text);

std::u32string nfkc(const std::u32string& text);
std::u32string lower_case(const std::u32string& text);
bool is_space(uint32_t c);
// The end of the grapheme that begins at `at`. Rules that could join characters of 6 bytes and more are left out: a
// character map treats their characters one by one in either case.
size_t grapheme_end(const std::u32string& text, size_t at);

}  // namespace editar::unicode
