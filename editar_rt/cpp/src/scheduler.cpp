#include "scheduler.h"

#include <algorithm>
#include <chrono>

namespace editar {

Scheduler::Scheduler(Backend& backend, int pictures, bool guided, int prefix, int count, int vocabulary, int dim)
    : decoder_(backend.make_decoder(guided ? 2 * pictures : pictures, prefix + count - 1)),
      pictures_(pictures),
      vocabulary_(vocabulary),
      dim_(dim),
      guided_(guided) {
    for (int place = 0; place < pictures; ++place) {
        auto uncond = guided ? std::make_unique<Row>(pictures + place, count) : nullptr;
        contexts_.push_back(std::make_unique<Context>(Context{Row(pictures - 1 - place, count), std::move(uncond)}));
    }
}

const float* Scheduler::run(const Batch& batch) {
    const auto started = std::chrono::steady_clock::now();
    const float* logits = decoder_->run(batch);
    engine_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    ++runs;
    return logits;
}

void Scheduler::prefill(Sequence& sequence) {
    while (!sequence.context.cond.has_prefix()) feed(sequence.context.cond, sequence.tokens, 0);
    if (Row* uncond = sequence.context.uncond.get())
        while (!uncond->has_prefix()) feed(*uncond, sequence.tokens, 0);
}

// Feed a row's next piece, or copy the same prefix from another row. Returns how many positions were run.
int Scheduler::feed(Row& row, const std::vector<int32_t>& tokens, int position) {
    if (!row.has_prefix() && copied(row)) return 0;
    // Picture, text and tokens are separate chunks: the same pieces give the same bits every time.
    const Chunk* source = nullptr;
    int at = row.filled;
    if (at < row.picture->size()) {
        source = row.picture.get();
    } else if ((at -= row.picture->size()) < row.text->size()) {
        source = row.text.get();
    } else {
        at -= row.text->size();
    }
    const int end = source == nullptr ? position : source->size();
    const int stop = std::min(at + decoder_->piece(), end);
    batch_.rows.assign(1, row.slot);
    batch_.past.assign(1, row.filled);
    batch_.positions = stop - at;
    const std::vector<int32_t>& all = source == nullptr ? tokens : source->tokens;
    batch_.tokens.assign(all.begin() + at, all.begin() + stop);
    const bool states = source != nullptr && !source->states.empty();
    batch_.states = states ? source->states.data() + static_cast<size_t>(at) * dim_ : nullptr;
    batch_.outputs = 1;
    const float* logits = run(batch_);
    row.logits.assign(logits, logits + vocabulary_);
    if (source == nullptr) std::copy(batch_.tokens.begin(), batch_.tokens.end(), row.fed.begin() + at);
    row.filled += stop - at;
    if (row.filled == row.start) row.first = row.logits;
    return stop - at;
}

// Copy the picture, or the text after it, from a row with the same contents.
bool Scheduler::copied(Row& row) {
    const int end = row.picture->size();
    for (const auto& context : contexts_)
        for (Row* other : {&context->cond, context->uncond.get()}) {
            if (other == nullptr || other == &row || other->picture == nullptr || !other->picture->same(*row.picture))
                continue;
            if (row.filled == 0 && other->filled >= end) {
                decoder_->copy(other->slot, row.slot, 0, end, true);  // later writes go after it
                row.filled = end;
                return true;
            }
            if (row.filled == end && other->has_prefix() && other->text->same(*row.text)) {
                decoder_->copy(other->slot, row.slot, end, row.start, false);
                row.filled = row.start;
                row.first = row.logits = other->first;
                return true;
            }
        }
    return false;
}

void Scheduler::step(const std::vector<Sequence*>& sequences) {
    std::vector<Sequence*> ready;
    int budget = decoder_->piece();
    for (Sequence* sequence : sequences) {
        if (sequence->finished()) continue;
        if (sequence->ready()) {
            ready.push_back(sequence);
            continue;
        }
        bool caught_up = true;
        for (Row* row : sequence->rows())
            while (sequence->lacks(*row) > 0 || !row->has_prefix()) {
                if (budget <= 0) {
                    caught_up = false;
                    break;
                }
                budget -= feed(*row, sequence->tokens, sequence->position);
            }
        if (!caught_up) continue;
        // From the logits of each row's last piece.
        auto of = [&](const Row& row) { return (sequence->position == 0 ? row.first : row.logits).data(); };
        const Row* uncond = sequence->context.uncond.get();
        draw(*sequence, of(sequence->context.cond), uncond == nullptr ? nullptr : of(*uncond));
    }
    if (!ready.empty()) step_together(ready);
}

// Sample a sequence's next token.
void Scheduler::draw(Sequence& sequence, const float* cond, const float* uncond) {
    const int position = sequence.position;
    const float* logits = cond;
    if (sequence.guided())
        logits = sampler_.guide(cond, uncond, vocabulary_, static_cast<float>(sequence.scales[position]));
    if (watch) watch(sequence, logits);
    sequence.draw(sampler_.sample(logits, vocabulary_, sequence.sampling, sequence.seed, position));
}

// One run in which every picture takes one position.
void Scheduler::step_together(const std::vector<Sequence*>& ready) {
    struct Fed {
        Row* row;
        Sequence* sequence;
    };
    std::vector<Fed> fed;
    for (Sequence* sequence : ready)
        for (Row* row : sequence->rows()) fed.push_back({row, sequence});
    std::sort(fed.begin(), fed.end(), [](const Fed& a, const Fed& b) { return a.row->slot < b.row->slot; });
    batch_.rows.clear();
    batch_.past.clear();
    batch_.tokens.clear();
    for (const Fed& each : fed) {
        batch_.rows.push_back(each.row->slot);
        batch_.past.push_back(each.row->filled);
        batch_.tokens.push_back(each.sequence->tokens[each.sequence->position - 1]);
    }
    batch_.positions = 1;
    batch_.states = nullptr;
    batch_.outputs = 1;
    const float* logits = run(batch_);
    for (size_t n = 0; n < fed.size(); ++n) {  // one position more is cached
        Row& row = *fed[n].row;
        row.fed[row.filled - row.start] = batch_.tokens[n];
        ++row.filled;
        row.logits.clear();
    }
    auto of = [&](const Row& row) {
        const auto place = std::lower_bound(batch_.rows.begin(), batch_.rows.end(), row.slot) - batch_.rows.begin();
        return logits + place * vocabulary_;
    };
    for (Sequence* sequence : ready)
        draw(*sequence, of(sequence->context.cond), sequence->guided() ? of(*sequence->context.uncond) : nullptr);
}

void Scheduler::score(Context& context, const ChunkPtr& picture, const ChunkPtr& text,
                      const std::vector<int32_t>& tokens, float* logits) {
    Row& row = context.cond;
    row.begin(picture, text);
    row.filled = std::min(row.filled, row.start);
    while (!row.has_prefix()) feed(row, tokens, 0);
    logits = std::copy(row.first.begin(), row.first.end(), logits);
    // Feed the target tokens; each predicts the next one, and the last one predicts nothing.
    const int count = static_cast<int>(tokens.size());
    while (row.filled < row.start + count - 1) {
        const int at = row.filled - row.start, stop = std::min(at + decoder_->piece(), count - 1);
        batch_.rows.assign(1, row.slot);
        batch_.past.assign(1, row.filled);
        batch_.positions = batch_.outputs = stop - at;
        batch_.tokens.assign(tokens.begin() + at, tokens.begin() + stop);
        batch_.states = nullptr;
        const float* found = run(batch_);
        logits = std::copy(found, found + static_cast<size_t>(stop - at) * vocabulary_, logits);
        std::copy(batch_.tokens.begin(), batch_.tokens.end(), row.fed.begin() + at);
        row.filled += stop - at;
    }
}

}  // namespace editar
