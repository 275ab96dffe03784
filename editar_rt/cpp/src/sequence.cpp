#include "sequence.h"

#include <algorithm>

namespace editar {

ChunkPtr token_chunk(const int32_t* tokens, int count) {
    auto chunk = std::make_shared<Chunk>();
    chunk->tokens.assign(tokens, tokens + count);
    return chunk;
}

ChunkPtr state_chunk(const float* states, int count, int dim) {
    auto chunk = std::make_shared<Chunk>();
    chunk->tokens.assign(count, -1);
    chunk->states.assign(states, states + static_cast<size_t>(count) * dim);
    return chunk;
}

void Row::begin(const ChunkPtr& new_picture, const ChunkPtr& new_text) {
    if (picture == nullptr || !picture->same(*new_picture)) {
        picture = new_picture;
        text = nullptr;
        filled = 0;
    }
    if (text == nullptr || !text->same(*new_text)) {
        text = new_text;
        filled = std::min(filled, picture->size());
        first.clear();
        start = picture->size() + text->size();
    }
    logits.clear();
}

void Row::rewind(const std::vector<int32_t>& tokens, int first_free) {
    const int most = std::max(std::min(filled - start, first_free - 1), 0);
    int kept = 0;
    while (kept < most && fed[kept] == tokens[kept]) ++kept;
    filled = std::min(filled, start + kept);
}

Sequence::Sequence(Context& context, const Inputs& inputs, const Sampling& sampling, uint64_t seed,
                   const std::vector<int32_t>& known)
    : context(context),
      sampling(sampling),
      seed(seed),
      scales(sampling.scales(static_cast<int>(known.size()))),
      tokens(known),
      position(0) {
    for (int32_t token : known) known_.push_back(token >= 0);
    while (!finished() && tokens[position] >= 0) ++position;
    context.cond.begin(inputs.picture, inputs.text);
    context.cond.rewind(tokens, position);
    if (context.uncond) {
        context.uncond->begin(inputs.picture, inputs.uncond_text);
        context.uncond->rewind(tokens, position);
    }
}

std::vector<Row*> Sequence::rows() const {
    if (guided() && context.uncond) return {&context.cond, context.uncond.get()};
    return {&context.cond};
}

bool Sequence::ready() const {
    if (position == 0) return false;
    for (const Row* row : rows())
        if (lacks(*row) != 1) return false;
    return true;
}

int Sequence::window() const {
    int last = static_cast<int>(tokens.size());
    while (last > position + 1 && known_[last - 1]) --last;
    int stop = position + 1;
    while (stop < last && (scales[stop] > 1) == guided()) ++stop;
    return stop - position;
}

int Sequence::chunk(int size, std::vector<int32_t>& fed) const {
    const int start = std::max(0, std::min(position - 1, static_cast<int>(tokens.size()) - 1 - size));
    fed.assign(tokens.begin() + start, tokens.begin() + start + size);
    for (int n = 0; n < size && speculation; ++n)
        if (fed[n] < 0) fed[n] = speculation->drafts[start + n];
    return start;
}

void Sequence::accept(int start, const std::vector<int32_t>& fed, const std::vector<int32_t>& made) {
    const int end = start + static_cast<int>(fed.size()), first = position;
    const bool was_guided = guided();
    const std::vector<Row*> own_rows = rows();
    ++passes;
    bool failed = false;
    int last = position, checked = 0;
    while (position <= end && !finished() && guided() == was_guided && !failed) {
        last = position;
        const int32_t token = made[last - start - 1];
        draw(token);
        checked += last < end ? 1 : 0;
        failed = last < end && fed[last - start] != token;
    }
    if (speculation) {
        std::copy(made.begin() + (first - start - 1), made.end(), speculation->drafts.begin() + first);
        speculation->learn(checked - (failed ? 1 : 0), failed);
    }
    for (Row* row : own_rows) {
        const int stop = std::min(failed ? last : end, position - 1);
        for (int n = start; n < stop; ++n) row->fed[n] = fed[n - start];
        row->filled = row->start + stop;
    }
}

void Sequence::draw(int32_t token) {
    tokens[position] = token;
    drawn = ++position;
    while (!finished() && tokens[position] >= 0) ++position;
}

}  // namespace editar
