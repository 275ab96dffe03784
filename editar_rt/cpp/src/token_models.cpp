#include "token_models.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <unordered_map>

#include "error.h"
#include "text.h"

namespace editar {

namespace {

constexpr int32_t none = -1;

size_t character_end(std::string_view text, size_t at) {
    next_code_point(text, at);
    return at;
}

int32_t read_id(const Json& value, const std::string& where) {
    if (!value.is_integer() || value.integer() < 0 || value.integer() > std::numeric_limits<int32_t>::max())
        no_tokenizer(where, "a token has the id " + shown(value, 40));
    return static_cast<int32_t>(value.integer());
}

// A score as the library's JSON reader rounds it, which is not always the nearest number.
double read_score(const Json& value, const std::string& where) {
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    const std::string& text = value.text;
    if (value.kind != Json::Kind::number || text.find_first_of("NI") != std::string::npos)
        no_tokenizer(where, "a token has the score " + shown(value, 40));
    uint64_t digits = 0;
    int64_t exponent = 0;
    bool behind_point = false, full = false;
    size_t at = text[0] == '-' ? 1 : 0;
    for (; at < text.size() && text[at] != 'e' && text[at] != 'E'; ++at) {
        if (text[at] == '.') {
            behind_point = true;
            continue;
        }
        const auto digit = static_cast<uint64_t>(text[at] - '0');
        full = full || digits > (most - digit) / 10;
        if (!full) digits = digits * 10 + digit;
        if (full != behind_point) exponent += full ? 1 : -1;  // whole digits left out, or decimals taken in
    }
    if (at < text.size()) exponent += static_cast<int64_t>(std::clamp(read_number(text.substr(at + 1)), -1e6, 1e6));
    auto score = static_cast<double>(digits);
    for (; score != 0 && exponent < -308; exponent += 308) score /= 1e308;
    if (exponent > 308 && score != 0) no_tokenizer(where, "a token has the score " + shown(value, 40));
    const double power = read_number("1e" + std::to_string(exponent < 0 ? -exponent : exponent));
    if (score != 0) score = exponent < 0 ? score / power : score * power;
    if (!std::isfinite(score)) no_tokenizer(where, "a token has the score " + shown(value, 40));
    return text[0] == '-' ? -score : score;
}

// Byte-pair encoding: characters, of which neighbours are merged in the order of the list.
class Bpe : public TokenModel {
public:
    Bpe(const Json& model, const std::string& where) {
        for (const char* option :
             {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"})
            require_off(model, option, "BPE", where);
        for (const auto& [token, id] : required_member(model, "vocab", Json::Kind::object, where).members)
            ids_[token] = read_id(id, where);
        const Json* unknown = model.find("unk_token");
        if (unknown && unknown->kind == Json::Kind::string) {
            unknown_ = Bpe::id_of(unknown->text);
            if (unknown_ == none) no_tokenizer(where, "its vocabulary lacks the unknown token " + shown(unknown->text));
        }
        const Json* fuse = model.find("fuse_unk");
        fuses_unknown_ = fuse && fuse->boolean;
        for (const auto& merge : required_member(model, "merges", Json::Kind::list, where).items)
            add_merge(merge, where);
    }

    void encode(const std::string& word, std::vector<int32_t>& ids) const override {
        std::vector<Symbol> symbols = symbols_of(word);
        merge(symbols);
        for (const auto& symbol : symbols)
            if (symbol.id != none) ids.push_back(symbol.id);
    }

    int32_t id_of(std::string_view token) const override {
        const auto found = ids_.find(std::string(token));
        return found == ids_.end() ? none : found->second;
    }

    int32_t size() const override { return static_cast<int32_t>(ids_.size()); }

private:
    struct Symbol {
        int32_t id;  // `none` after it was merged into the one before
        int64_t previous, next;
    };
    struct Merge {
        int32_t rank, into;
    };
    struct Candidate {
        int32_t rank;
        int64_t at;
        int32_t into;
        bool operator<(const Candidate& other) const {  // the first by rank, then by place, is on top
            return rank != other.rank ? rank > other.rank : at > other.at;
        }
    };

    static uint64_t key(int32_t left, int32_t right) {
        return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    }

    void add_merge(const Json& merge, const std::string& where) {
        std::string left, right;
        if (merge.kind == Json::Kind::list && merge.items.size() == 2 && merge.items[0].kind == Json::Kind::string &&
            merge.items[1].kind == Json::Kind::string) {
            left = merge.items[0].text, right = merge.items[1].text;
        } else {
            const size_t space = merge.text.find(' ');  // "left right", as older files have it
            if (merge.kind != Json::Kind::string || space == std::string::npos ||
                merge.text.find(' ', space + 1) != std::string::npos)
                no_tokenizer(where, "a merge is " + shown(merge, 40));
            left = merge.text.substr(0, space), right = merge.text.substr(space + 1);
        }
        const int32_t one = id_of(left), two = id_of(right), into = id_of(left + right);
        if (one == none || two == none || into == none)
            no_tokenizer(where, "its vocabulary lacks a token of the merge " + shown(merge, 40));
        merges_[key(one, two)] = {next_rank_++, into};
    }

    std::vector<Symbol> symbols_of(const std::string& word) const {
        std::vector<Symbol> symbols;
        bool after_unknown = false;
        for (size_t at = 0; at < word.size();) {
            const size_t end = character_end(word, at);
            const int32_t known = id_of(word.substr(at, end - at));
            at = end;
            const int32_t id = known != none ? known : unknown_;
            const bool is_unknown = known == none;
            if (id == none || (is_unknown && after_unknown && fuses_unknown_)) continue;
            after_unknown = is_unknown;
            const auto place = static_cast<int64_t>(symbols.size());
            symbols.push_back({id, place - 1, place + 1});
        }
        if (!symbols.empty()) symbols.back().next = -1;
        return symbols;
    }

    void merge(std::vector<Symbol>& symbols) const {
        std::priority_queue<Candidate> queue;
        const auto consider = [&](int64_t at) {
            if (at < 0 || symbols[static_cast<size_t>(at)].next < 0) return;
            const Symbol& left = symbols[static_cast<size_t>(at)];
            const auto found = merges_.find(key(left.id, symbols[static_cast<size_t>(left.next)].id));
            if (found != merges_.end()) queue.push({found->second.rank, at, found->second.into});
        };
        for (size_t at = 0; at < symbols.size(); ++at) consider(static_cast<int64_t>(at));
        while (!queue.empty()) {
            const Candidate top = queue.top();
            queue.pop();
            Symbol& left = symbols[static_cast<size_t>(top.at)];
            if (left.id == none || left.next < 0) continue;
            Symbol& right = symbols[static_cast<size_t>(left.next)];
            const auto found = merges_.find(key(left.id, right.id));
            if (found == merges_.end() || found->second.into != top.into) continue;  // merged otherwise meanwhile
            left.id = top.into;
            left.next = right.next;
            right.id = none;
            if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = top.at;
            consider(left.previous);
            consider(top.at);
        }
    }

    std::unordered_map<std::string, int32_t> ids_;
    std::unordered_map<uint64_t, Merge> merges_;
    int32_t next_rank_ = 0;
    int32_t unknown_ = none;
    bool fuses_unknown_ = false;
};

// Unigram: the pieces whose scores have the largest sum.
class Unigram : public TokenModel {
public:
    Unigram(const Json& model, const std::string& where) {
        require_off(model, "byte_fallback", "Unigram", where);
        double least = std::numeric_limits<double>::infinity();
        const auto& vocabulary = required_member(model, "vocab", Json::Kind::list, where).items;
        for (const auto& entry : vocabulary) {
            if (entry.kind != Json::Kind::list || entry.items.size() != 2 || entry.items[0].kind != Json::Kind::string)
                no_tokenizer(where, "a token is " + shown(entry, 40));
            const double score = read_score(entry.items[1], where);
            pieces_.push_back({entry.items[0].text, score, static_cast<int32_t>(pieces_.size())});
            least = std::min(least, score);
        }
        size_ = static_cast<int32_t>(pieces_.size());
        unknown_score_ = least - 10;
        const Json* unknown = model.find("unk_id");
        if (!unknown || unknown->kind == Json::Kind::null)
            unknown_tokenizer(where, "a Unigram model without an unknown token");
        unknown_ = read_id(*unknown, where);
        if (unknown_ >= Unigram::size())
            no_tokenizer(where, "its unknown token has the id " + std::to_string(unknown_));
        std::stable_sort(pieces_.begin(), pieces_.end(),
                         [](const Piece& a, const Piece& b) { return a.text < b.text; });
        // Of equal pieces the last one counts.
        const auto same = [](const Piece& a, const Piece& b) { return a.text == b.text; };
        pieces_.erase(pieces_.begin(), std::unique(pieces_.rbegin(), pieces_.rend(), same).base());
    }

    void encode(const std::string& word, std::vector<int32_t>& ids) const override {
        struct Node {
            double score = 0;
            size_t start = std::string::npos;
            bool is_unknown = false;
        };
        std::vector<Node> ending(word.size() + 1);  // the best path to each place
        const auto offer = [&](size_t start, size_t end, double score, bool is_unknown) {
            Node& node = ending[end];
            if (node.start == std::string::npos || score > node.score) node = {score, start, is_unknown};
        };
        for (size_t at = 0, next; at < word.size(); at = next) {
            next = character_end(word, at);
            const double before = ending[at].score;
            bool has_single = false;
            each_prefix(word, at, [&](size_t end, const Piece& piece) {
                offer(at, end, piece.score + before, piece.id == unknown_);
                has_single = has_single || end == next;
            });
            if (!has_single) offer(at, next, unknown_score_ + before, true);
        }
        std::vector<int32_t> backwards;
        for (size_t end = word.size(); end > 0;) {
            // Neighbouring unknown pieces become one, which is looked up as a whole.
            size_t start = ending[end].start;
            if (ending[end].is_unknown)
                while (start > 0 && ending[start].is_unknown) start = ending[start].start;
            const int32_t id = id_of(std::string_view(word).substr(start, end - start));
            backwards.push_back(id == none ? unknown_ : id);
            end = start;
        }
        ids.insert(ids.end(), backwards.rbegin(), backwards.rend());
    }

    int32_t id_of(std::string_view token) const override {
        const auto found = std::lower_bound(pieces_.begin(), pieces_.end(), token,
                                            [](const Piece& piece, std::string_view t) { return piece.text < t; });
        return found != pieces_.end() && found->text == token ? found->id : none;
    }

    int32_t size() const override { return size_; }

private:
    struct Piece {
        std::string text;
        double score;
        int32_t id;
    };

    // Call `found` with every piece that a text has at a place, the short ones first: the range of the pieces that
    // begin so is narrowed byte by byte.
    template <typename Found>
    void each_prefix(const std::string& text, size_t at, Found found) const {
        auto first = pieces_.begin(), last = pieces_.end();
        while (first != last && first->text.empty()) ++first;
        for (size_t depth = 0; first != last && at + depth < text.size(); ++depth) {
            const auto byte = static_cast<uint8_t>(text[at + depth]);
            const auto at_depth = [depth](const Piece& piece) { return static_cast<uint8_t>(piece.text[depth]); };
            first = std::partition_point(first, last, [&](const Piece& piece) { return at_depth(piece) < byte; });
            last = std::partition_point(first, last, [&](const Piece& piece) { return at_depth(piece) == byte; });
            if (first != last && first->text.size() == depth + 1) {
                found(at + depth + 1, *first);
                ++first;
            }
        }
    }

    std::vector<Piece> pieces_;  // sorted by their bytes
    double unknown_score_ = 0;
    int32_t unknown_ = 0, size_ = 0;
};

}  // namespace

void no_tokenizer(const std::string& where, const std::string& what) {
    throw bundle_error(where + " is not a tokenizer (" + what + "); export the bundle again");
}

void unknown_tokenizer(const std::string& where, const std::string& what) {
    throw unsupported(where + " has " + what +
                      ", which this library does not know; give token ids or text states in place of the text, or "
                      "use Python's runtime");
}

const Json& required_member(const Json& object, std::string_view name, Json::Kind kind, const std::string& where) {
    const Json* found = object.find(name);
    if (!found || found->kind != kind) no_tokenizer(where, "it lacks " + std::string(name));
    return *found;
}

void require_off(const Json& object, std::string_view option, const std::string& of, const std::string& where) {
    const Json* given = object.find(option);
    const bool off = !given || given->kind == Json::Kind::null ||
                     (given->kind == Json::Kind::boolean && !given->boolean) ||
                     (given->kind == Json::Kind::string && given->text.empty()) ||
                     (given->kind == Json::Kind::number && given->number() == 0);
    if (!off) unknown_tokenizer(where, of + " with " + std::string(option) + " " + shown(*given, 40));
}

std::unique_ptr<TokenModel> read_token_model(const Json& model, const std::string& where) {
    const std::string& type = required_member(model, "type", Json::Kind::string, where).text;
    if (type == "BPE") return std::make_unique<Bpe>(model, where);
    if (type == "Unigram") return std::make_unique<Unigram>(model, where);
    unknown_tokenizer(where, "a model of type " + shown(type, 40));
}

}  // namespace editar
