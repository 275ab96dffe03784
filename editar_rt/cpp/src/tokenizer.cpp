#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <functional>

#include "error.h"
#include "text.h"
#include "token_models.h"
#include "unicode.h"

namespace editar {

namespace {

using Words = std::vector<std::string>;
using Normalizer = std::function<std::string(const std::string&)>;
using Splitter = std::function<void(const std::string&, Words&)>;

std::string decoded_base64(const std::string& text, const std::string& where) {
    static constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    uint32_t bits = 0;
    int held = 0;
    const size_t end = text.find_last_not_of('=') + 1;
    for (const char c : text.substr(0, end)) {
        const size_t value = letters.find(c);
        if (value == std::string_view::npos) no_tokenizer(where, "its character map is not base64");
        bits = bits << 6 | static_cast<uint32_t>(value);
        held += 6;
        if (held < 8) continue;
        held -= 8;
        out.push_back(static_cast<char>(bits >> held & 0xFF));
    }
    return out;
}

// A character map as sentencepiece compiles it: a double array over the bytes of what is replaced, whose values are
// places in the replacements, each of which ends with a 0.
class CharacterMap {
public:
    CharacterMap(const std::string& base64, const std::string& where) {
        const std::string map = decoded_base64(base64, where);
        const auto unit = [&map](size_t at) {
            uint32_t value = 0;
            for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(map[at + i]);
            return value;
        };
        if (map.size() < 8) no_tokenizer(where, "its character map is too short");
        const size_t bytes = unit(0);
        if (bytes < 4 || bytes > map.size() - 4) no_tokenizer(where, "its character map is damaged");
        for (size_t at = 0; at + 4 <= bytes; at += 4) units_.push_back(unit(4 + at));
        replacements_ = map.substr(4 + bytes);
        if (!is_utf8(replacements_)) no_tokenizer(where, "its character map has text that is not UTF-8");
    }

    std::string operator()(const std::string& utf8) const {
        const std::u32string text = unicode::code_points(utf8);
        std::string out;
        for (size_t at = 0; at < text.size();) {
            const size_t end = unicode::grapheme_end(text, at);
            const std::string grapheme = unicode::as_utf8(text.substr(at, end - at));
            // Of a short grapheme, the beginning decides and the rest is dropped.
            if (grapheme.size() >= 6 || !replace(grapheme, out)) {
                for (; at < end; ++at) {
                    const std::string character = unicode::as_utf8(text.substr(at, 1));
                    if (!replace(character, out)) out += character;
                }
            }
            at = end;
        }
        return out;
    }

private:
    static size_t offset(uint32_t unit) { return static_cast<size_t>(unit >> 10) << ((unit & 1u << 9) >> 6); }

    // Append the replacement of a text's shortest beginning that has one.
    bool replace(const std::string& text, std::string& out) const {
        size_t node = offset(units_[0]);
        for (const char c : text) {
            const auto byte = static_cast<uint8_t>(c);
            node ^= byte;
            if (byte == 0 || node >= units_.size()) return false;
            const uint32_t unit = units_[node];
            if ((unit & (1u << 31 | 0xFF)) != byte) return false;
            node ^= offset(unit);
            if ((unit >> 8 & 1) == 0) continue;
            if (node >= units_.size()) return false;
            const size_t start = units_[node] & ((1u << 31) - 1);
            if (start > replacements_.size()) return false;
            out += replacements_.c_str() + start;
            return true;
        }
        return false;
    }

    std::vector<uint32_t> units_;
    std::string replacements_;
};

std::string stripped(const std::string& utf8, bool left, bool right) {
    const std::u32string text = unicode::code_points(utf8);
    size_t start = 0, end = text.size();
    while (left && start < end && unicode::is_space(text[start])) ++start;
    while (right && end > start && unicode::is_space(text[end - 1])) --end;
    return unicode::as_utf8(text.substr(start, end - start));
}

bool flag(const Json& object, std::string_view name, bool otherwise) {
    const Json* found = object.find(name);
    return found && found->kind == Json::Kind::boolean ? found->boolean : otherwise;
}

void read_normalizers(const Json& json, const std::string& where, std::vector<Normalizer>& found) {
    if (json.kind == Json::Kind::null) return;
    const std::string& type = required_member(json, "type", Json::Kind::string, where).text;
    if (type == "Sequence") {
        for (const auto& each : required_member(json, "normalizers", Json::Kind::list, where).items)
            read_normalizers(each, where, found);
    } else if (type == "NFKC") {
        found.emplace_back(
            [](const std::string& text) { return unicode::as_utf8(unicode::nfkc(unicode::code_points(text))); });
    } else if (type == "Lowercase") {
        found.emplace_back(
            [](const std::string& text) { return unicode::as_utf8(unicode::lower_case(unicode::code_points(text))); });
    } else if (type == "Strip") {
        const bool left = flag(json, "strip_left", true), right = flag(json, "strip_right", true);
        found.emplace_back([left, right](const std::string& text) { return stripped(text, left, right); });
    } else if (type == "Precompiled") {
        const Json& map = required_member(json, "precompiled_charsmap", Json::Kind::string, where);
        found.emplace_back(CharacterMap(map.text, where));
    } else {
        unknown_tokenizer(where, "the normalizer " + shown(type, 40));
    }
}

void split_at_spaces(const std::string& utf8, Words& words) {
    std::string word;
    for (size_t at = 0; at < utf8.size();) {
        const size_t start = at;
        if (!unicode::is_space(next_code_point(utf8, at))) {
            word.append(utf8, start, at - start);
        } else if (!word.empty()) {
            words.push_back(std::move(word));
            word.clear();
        }
    }
    if (!word.empty()) words.push_back(std::move(word));
}

// Spaces become a mark, which also goes before the text; words begin at marks.
Splitter metaspace(const Json& json, const std::string& where) {
    const std::string mark = required_member(json, "replacement", Json::Kind::string, where).text;
    size_t size = 0;
    if (!mark.empty()) next_code_point(mark, size);
    if (mark.empty() || size != mark.size()) no_tokenizer(where, "Metaspace has the mark " + shown(mark, 40));
    const Json* scheme = json.find("prepend_scheme");
    const bool named = scheme && scheme->kind == Json::Kind::string;
    if (named && scheme->text != "always" && scheme->text != "never")
        unknown_tokenizer(where, "Metaspace with prepend_scheme " + shown(scheme->text, 40));
    const bool before = named ? scheme->text == "always" : flag(json, "add_prefix_space", true);
    const bool splits = flag(json, "split", true);
    return [mark, before, splits](const std::string& text, Words& words) {
        std::string marked;
        if (before && text.compare(0, mark.size(), mark) != 0 && !text.empty() && text[0] != ' ') marked = mark;
        for (const char c : text) {
            if (c == ' ')
                marked += mark;
            else
                marked.push_back(c);
        }
        for (size_t start = 0; start < marked.size();) {
            const size_t next = splits ? std::min(marked.find(mark, start + 1), marked.size()) : marked.size();
            words.push_back(marked.substr(start, next - start));
            start = next;
        }
    };
}

void read_splitters(const Json& json, const std::string& where, std::vector<Splitter>& found) {
    if (json.kind == Json::Kind::null) return;
    const std::string& type = required_member(json, "type", Json::Kind::string, where).text;
    if (type == "Sequence") {
        for (const auto& each : required_member(json, "pretokenizers", Json::Kind::list, where).items)
            read_splitters(each, where, found);
    } else if (type == "WhitespaceSplit") {
        found.emplace_back(split_at_spaces);
    } else if (type == "Metaspace") {
        found.push_back(metaspace(json, where));
    } else {
        unknown_tokenizer(where, "the pre-tokenizer " + shown(type, 40));
    }
}

struct AddedToken {
    std::string content;
    int32_t id;
};

// Tokens that are cut out of the text before anything else.
class AddedTokens {
public:
    void read(const Json& list, const TokenModel& model, const std::string& where) {
        int32_t next = model.size();
        for (const auto& each : list.items) {
            const std::string& content = required_member(each, "content", Json::Kind::string, where).text;
            const Json& id = required_member(each, "id", Json::Kind::number, where);
            for (const char* option : {"single_word", "lstrip", "rstrip", "normalized"})
                require_off(each, option, "the added token " + shown(content, 40), where);
            const int32_t known = model.id_of(content), expected = known >= 0 ? known : next;
            if (!id.is_integer() || id.integer() != expected || content.empty())
                no_tokenizer(where, "the added token " + shown(content, 40) + " has the id " + shown(id, 40));
            if (known < 0) ++next;
            tokens_.push_back({content, expected});
            begins_[static_cast<uint8_t>(content[0])] = true;
        }
    }

    // The longest token that a text has at a place; null if there is none.
    const AddedToken* at(std::string_view text, size_t place) const {
        const AddedToken* longest = nullptr;
        if (!begins_[static_cast<uint8_t>(text[place])]) return longest;
        for (const auto& token : tokens_)
            if ((!longest || token.content.size() > longest->content.size()) &&
                text.compare(place, token.content.size(), token.content) == 0)
                longest = &token;
        return longest;
    }

    int32_t id_of(std::string_view content) const {
        for (const auto& token : tokens_)
            if (token.content == content) return token.id;
        return -1;
    }

private:
    std::vector<AddedToken> tokens_;
    std::array<bool, 256> begins_{};
};

}  // namespace

struct Tokenizer::Impl {
    std::unique_ptr<TokenModel> model;
    AddedTokens added;
    std::vector<Normalizer> normalizers;
    std::vector<Splitter> splitters;
    std::vector<int32_t> before, after;  // ids that the post-processor adds
    int32_t pad = 0;

    void read_template(const Json& json, const std::string& where) {
        if (json.kind == Json::Kind::null) return;
        const std::string& type = required_member(json, "type", Json::Kind::string, where).text;
        if (type != "TemplateProcessing") unknown_tokenizer(where, "the post-processor " + shown(type, 40));
        bool seen = false;
        const Json& special = required_member(json, "special_tokens", Json::Kind::object, where);
        for (const auto& piece : required_member(json, "single", Json::Kind::list, where).items) {
            if (piece.find("Sequence")) {
                if (seen) unknown_tokenizer(where, "a template that has the text twice");
                seen = true;
                continue;
            }
            const Json& token = required_member(piece, "SpecialToken", Json::Kind::object, where);
            const std::string& name = required_member(token, "id", Json::Kind::string, where).text;
            const Json& described = required_member(special, name, Json::Kind::object, where);
            for (const auto& id : required_member(described, "ids", Json::Kind::list, where).items) {
                if (!id.is_integer() || id.integer() < 0 || id.integer() > INT32_MAX)
                    no_tokenizer(where, "its template has the id " + shown(id, 40));
                (seen ? after : before).push_back(static_cast<int32_t>(id.integer()));
            }
        }
        if (!seen) no_tokenizer(where, "its template lacks the text");
    }

    void read_padding(const Json& document) {
        const Json* padding = document.find("padding");
        const Json* id = padding ? padding->find("pad_id") : nullptr;
        if (id && id->is_integer()) {
            pad = static_cast<int32_t>(std::clamp<int64_t>(id->integer(), 0, INT32_MAX));
            return;
        }
        const int32_t found = added.id_of("<pad>");
        pad = std::max(found >= 0 ? found : model->id_of("<pad>"), 0);  // T5's is 0
    }

    void encode_piece(std::string text, std::vector<int32_t>& ids) const {
        for (const auto& normalizer : normalizers) text = normalizer(text);
        if (text.empty()) return;
        Words words = {std::move(text)};
        for (const auto& splitter : splitters) {
            Words apart;
            for (const auto& word : words) splitter(word, apart);
            words = std::move(apart);
        }
        for (const auto& word : words) model->encode(word, ids);
    }
};

Tokenizer::Tokenizer(std::string_view json, const std::string& where) : impl_(std::make_unique<Impl>()) {
    const Json document = Json::parse(json, where);
    static const Json nothing;
    const auto member = [&document](std::string_view name) -> const Json& {
        const Json* found = document.find(name);
        return found ? *found : nothing;
    };
    impl_->model = read_token_model(required_member(document, "model", Json::Kind::object, where), where);
    impl_->added.read(member("added_tokens"), *impl_->model, where);
    read_normalizers(member("normalizer"), where, impl_->normalizers);
    read_splitters(member("pre_tokenizer"), where, impl_->splitters);
    impl_->read_template(member("post_processor"), where);
    impl_->read_padding(document);
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
    const std::string readable = repaired(text);
    std::vector<int32_t> ids = impl_->before;
    size_t start = 0;
    for (size_t at = 0; at < readable.size();) {
        const AddedToken* token = impl_->added.at(readable, at);
        if (!token) {
            ++at;
            continue;
        }
        impl_->encode_piece(readable.substr(start, at - start), ids);
        ids.push_back(token->id);
        at += token->content.size();
        start = at;
    }
    impl_->encode_piece(readable.substr(start), ids);
    ids.insert(ids.end(), impl_->after.begin(), impl_->after.end());
    return ids;
}

int32_t Tokenizer::pad_id() const {
    return impl_->pad;
}

bool Tokenizer::ends_with_special(const std::vector<int32_t>& ids) const {
    return !impl_->after.empty() && !ids.empty() && ids.back() == impl_->after.back();
}

}  // namespace editar
