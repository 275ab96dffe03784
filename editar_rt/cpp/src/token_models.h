// The models that turn words into ids: byte-pair merges, and the most likely pieces (Unigram).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace editar {

class TokenModel {
public:
    virtual ~TokenModel() = default;
    virtual void encode(const std::string& word, std::vector<int32_t>& ids) const = 0;
    virtual int32_t id_of(std::string_view token) const = 0;  // -1 if there is none
    virtual int32_t size() const = 0;                         // of the vocabulary
};

// Throws EDITAR_BAD_BUNDLE or EDITAR_UNSUPPORTED.
std::unique_ptr<TokenModel> read_token_model(const Json& model, const std::string& where);

// Members of a tokenizer's objects, for its other parts.
const Json& required_member(const Json& object, std::string_view name, Json::Kind kind, const std::string& where);
[[noreturn]] void no_tokenizer(const std::string& where, const std::string& what);
[[noreturn]] void unknown_tokenizer(const std::string& where, const std::string& what);
// Refuse an option that is not as it usually is: absent, null, false, 0 or "".
void require_off(const Json& object, std::string_view option, const std::string& of, const std::string& where);

}  // namespace editar
