// The bundle's tokenizer.json, with the ids of the tokenizers library: NFKC and lower case before BPE (the demo's), or
// a precompiled character map before Unigram (T5's). Anything else is refused by name (EDITAR_UNSUPPORTED).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace editar {

class Tokenizer {
public:
    // Throws EDITAR_BAD_BUNDLE or EDITAR_UNSUPPORTED; `where` is the file's name for messages.
    Tokenizer(std::string_view json, const std::string& where);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;

    // Ids of a text with its end token, neither padded nor truncated. Bytes that are not UTF-8 become U+FFFD.
    std::vector<int32_t> encode(std::string_view text) const;
    int32_t pad_id() const;
    // Whether the last id is one that the post-processor adds, the end token: a truncated prompt keeps it.
    bool ends_with_special(const std::vector<int32_t>& ids) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace editar
