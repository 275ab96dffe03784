// A picture being decoded: its rows of the KV cache, tokens, guidance and seed. As editar_rt/generation/sequence.py.
//
// The input of a row is [picture | text | target tokens]. The picture comes first and attention is causal, so its keys
// and values are the same with and without the text, and for every instruction.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sampling.h"
#include "speculation.h"

namespace editar {

// A run of positions of one row's input: tokens, or hidden states [S, D].
struct Chunk {
    std::vector<int32_t> tokens;  // [S]; negative where the position takes its value from `states`
    std::vector<float> states;    // empty if all tokens are given
    int size() const { return static_cast<int>(tokens.size()); }
    bool same(const Chunk& other) const { return tokens == other.tokens && states == other.states; }
};
using ChunkPtr = std::shared_ptr<const Chunk>;

ChunkPtr token_chunk(const int32_t* tokens, int count);
ChunkPtr state_chunk(const float* states, int count, int dim);

struct Inputs {
    ChunkPtr picture;  // the condition's tokens, or the unconditional embedding of the picture
    ChunkPtr text;
    ChunkPtr uncond_text;  // replaces the text in the unconditional row
};

// One row of the KV cache and its contents.
class Row {
public:
    Row(int slot, int count) : slot(slot), fed(count, -1) {}

    // Set picture and text. The cached part that is the same is kept.
    void begin(const ChunkPtr& new_picture, const ChunkPtr& new_text);
    // Rewind so that decoding can continue with target tokens, negative where they are sampled. Cached tokens that
    // match are kept, except the last one before the first free position: it is fed again for its logits.
    void rewind(const std::vector<int32_t>& tokens, int first_free);
    // Whether picture and text are cached and the logits after them are known.
    bool has_prefix() const { return !first.empty() && filled >= start; }

    int slot;
    ChunkPtr picture, text;
    int start = 0;              // position of the first target token
    int filled = 0;             // number of cached positions
    std::vector<int32_t> fed;   // target tokens that were fed; valid up to `filled`
    std::vector<float> first;   // logits of target token 0, once picture and text are in the cache
    std::vector<float> logits;  // logits after the last cached position, if a chunk computed them
};

struct Context {  // the rows of one picture: conditional, and unconditional if it is guided
    Row cond;
    std::unique_ptr<Row> uncond;
};

class Sequence {
public:
    // known: [count], negative where a token is to be sampled.
    Sequence(Context& context, const Inputs& inputs, const Sampling& sampling, uint64_t seed,
             const std::vector<int32_t>& known);

    bool finished() const { return position == static_cast<int>(tokens.size()); }
    bool guided() const { return !finished() && scales[position] > 1; }
    // The rows that the next token needs. Without guidance the unconditional row waits; it catches up later.
    std::vector<Row*> rows() const;
    int lacks(const Row& row) const { return row.start + position - row.filled; }
    // Whether one decode step is enough for the next token: each row lacks exactly one position.
    bool ready() const;
    // The number of positions up to the last free one, or to where guidance begins or ends.
    int window() const;
    // The chunk of a pass, which gives the logits of `position` and of those after it: its first position. `fed` [size]
    // gets the tokens, those that are known or sampled, otherwise drafts. Near the end of the picture it begins with
    // positions that are cached already, and computes the same keys and values again.
    int chunk(int size, std::vector<int32_t>& fed) const;
    // Take the tokens `made` [size], sampled at the positions after `start`, up to the first one that differs from its
    // draft. The keys and values of all tokens before `position` are then valid.
    void accept(int start, const std::vector<int32_t>& fed, const std::vector<int32_t>& made);
    void draw(int32_t token);  // store the token sampled at `position`, and move on to the next free one

    std::unique_ptr<Speculation> speculation;  // null takes one position in a pass
    Context& context;
    const Sampling& sampling;
    uint64_t seed;
    std::vector<double> scales;
    std::vector<int32_t> tokens;  // negative where they are not sampled yet
    int position;                 // index of the target token to sample next; N when finished
    int passes = 0;               // runs of the decoder after the prefill; those of both rows count as one
    int drawn = 0;                // one past the last sampled position

private:
    std::vector<bool> known_;
};

}  // namespace editar
