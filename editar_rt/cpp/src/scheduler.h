// Steps the variants of one picture together over one KV cache. As editar_rt/generation/scheduler.py, for contexts that
// stay: [cond 2, cond 1, cond 0 | uncond 0, uncond 1, uncond 2].
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend.h"
#include "sequence.h"

namespace editar {

class Scheduler {
public:
    // prefix: positions of picture and text. count: N; the last target token is never fed.
    Scheduler(Backend& backend, int pictures, bool guided, int prefix, int count, int vocabulary, int dim);

    int pictures() const { return pictures_; }
    bool guided() const { return guided_; }
    Context& context(int n) { return *contexts_[n]; }

    // Let a sequence take several positions in a pass; drafts [N] are the first ones. Throws EDITAR_BAD_ARGUMENT.
    void speculate(Sequence& sequence, int speculate, const std::vector<int32_t>& drafts) const;
    // Feed picture and text without sampling a token.
    void prefill(Sequence& sequence);
    // Advance sequences, each at its own position. The lagging ones together are fed about one piece.
    void step(const std::vector<Sequence*>& sequences);
    // Logits [N, V] of every target position, with forced target tokens.
    void score(Context& context, const ChunkPtr& picture, const ChunkPtr& text, const std::vector<int32_t>& tokens,
               float* logits);

    // Called with the guided logits of every token that is sampled, if it is set.
    std::function<void(const Sequence&, const float* logits)> watch;
    double engine_seconds = 0;  // inside the decoder

private:
    const float* run(const Batch& batch);
    // Null where the device has drawn the tokens.
    const float* run(const Batch& batch, const std::vector<Draw>& draws, std::vector<int32_t>& drawn);
    int feed(Row& row, const std::vector<int32_t>& tokens, int position, bool even = false);
    bool copied(Row& row);
    void step_together(const std::vector<Sequence*>& ready, int size);
    int32_t sampled(const Sequence& sequence, int position, const float* cond, const float* uncond);

    std::unique_ptr<Decoder> decoder_;
    int pictures_, vocabulary_, dim_, count_;
    bool guided_;
    std::vector<std::unique_ptr<Context>> contexts_;
    Sampler sampler_;
    Batch batch_;
    Costs costs_;
};

}  // namespace editar
