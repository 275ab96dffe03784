// UTF-8, and texts as they appear in messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace editar {

// Whether bytes are UTF-8 without surrogates, overlong forms or values above U+10FFFF.
bool is_utf8(std::string_view bytes);
// The code point that begins at `at`, which moves behind it. The text is UTF-8, with lone surrogates allowed.
uint32_t next_code_point(std::string_view text, size_t& at);
void append_utf8(std::string& text, uint32_t code_point);
// The text with U+FFFD for every byte that is not part of UTF-8.
std::string repaired(std::string_view bytes);

// A text in quotes and in ASCII, as Python's ascii() writes it, of at most `most` characters.
std::string shown(std::string_view text, size_t most = 80);

}  // namespace editar
