#include "text.h"

#include <cstdio>

namespace editar {

namespace {

uint8_t byte_at(std::string_view text, size_t at) {
    return static_cast<uint8_t>(text[at]);
}

// Bytes of the valid character that begins at `at`; 0 if there is none.
size_t character_size(std::string_view bytes, size_t at) {
    const uint8_t first = byte_at(bytes, at);
    if (first < 0x80) return 1;
    const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || size > bytes.size() - at) return 0;
    for (size_t i = 1; i < size; ++i)
        if ((byte_at(bytes, at + i) & 0xC0) != 0x80) return 0;
    const uint8_t second = byte_at(bytes, at + 1);
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
        (first == 0xF4 && second > 0x8F))
        return 0;
    return size;
}

}  // namespace

bool is_utf8(std::string_view bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const size_t size = character_size(bytes, at);
        if (size == 0) return false;
        at += size;
    }
    return true;
}

uint32_t next_code_point(std::string_view text, size_t& at) {
    const uint8_t first = byte_at(text, at++);
    if (first < 0x80) return first;
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    uint32_t value = first & (0x3Fu >> more);
    for (int i = 0; i < more && at < text.size(); ++i) value = value << 6 | (byte_at(text, at++) & 0x3Fu);
    return value;
}

void append_utf8(std::string& text, uint32_t c) {
    const auto add = [&text](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        add(c);
        return;
    }
    if (c < 0x800) {
        add(0xC0 | c >> 6);
    } else {
        if (c < 0x10000) {
            add(0xE0 | c >> 12);
        } else {
            add(0xF0 | c >> 18);
            add(0x80 | (c >> 12 & 0x3F));
        }
        add(0x80 | (c >> 6 & 0x3F));
    }
    add(0x80 | (c & 0x3F));
}

std::string repaired(std::string_view bytes) {
    std::string text;
    for (size_t at = 0; at < bytes.size();) {
        const size_t size = character_size(bytes, at);
        if (size == 0)
            append_utf8(text, 0xFFFD);
        else
            text.append(bytes.substr(at, size));
        at += size == 0 ? 1 : size;
    }
    return text;
}

std::string shown(std::string_view text, size_t most) {
    const bool single = text.find('\'') == std::string_view::npos || text.find('"') != std::string_view::npos;
    const char quote = single ? '\'' : '"';
    std::string out(1, quote);
    for (size_t at = 0; at < text.size() && out.size() < most;) {
        const uint32_t c = next_code_point(text, at);
        if (c == static_cast<uint8_t>(quote) || c == '\\') {
            out += {'\\', static_cast<char>(c)};
        } else if (c == '\n' || c == '\r' || c == '\t') {
            out += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
        } else if (c >= 0x20 && c < 0x7F) {
            out.push_back(static_cast<char>(c));
        } else {
            char escape[16];
            const char* format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
            std::snprintf(escape, sizeof escape, format, static_cast<unsigned>(c));
            out += escape;
        }
    }
    out.push_back(quote);
    return out.substr(0, most);
}

}  // namespace editar
