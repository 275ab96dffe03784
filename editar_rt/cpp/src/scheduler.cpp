#include "scheduler.h"

#include <algorithm>
#include <chrono>

#include "facts.h"

namespace editar {

Scheduler::Scheduler(Backend& backend, int pictures, bool guided, int prefix, int count, int vocabulary, int dim)
    : decoder_(backend.make_decoder(guided ? 2 * pictures : pictures, prefix + count - 1)),
      pictures_(pictures),
      vocabulary_(vocabulary),
      dim_(dim),
      count_(count),
      guided_(guided) {
    for (int place = 0; place < pictures; ++place) {
        auto uncond = guided ? std::make_unique<Row>(pictures + place, count) : nullptr;
        contexts_.push_back(std::make_unique<Context>(Context{Row(pictures - 1 - place, count), std::move(uncond)}));
    }
}

const float* Scheduler::run(const Batch& batch) {
    std::vector<int32_t> drawn;
    return run(batch, {}, drawn);
}

const float* Scheduler::run(const Batch& batch, const std::vector<Draw>& draws, std::vector<int32_t>& drawn) {
    const auto started = std::chrono::steady_clock::now();
    const float* logits = nullptr;
    if (draws.empty() || !decoder_->run_and_draw(batch, draws, drawn)) logits = decoder_->run(batch);
    engine_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    return logits;
}

void Scheduler::speculate(Sequence& sequence, int speculate, const std::vector<int32_t>& drafts) const {
    const DraftChunks chunks = decoder_->draft_chunks();
    const bool together = !chunks.sizes.empty() && decoder_->runs(guided_ ? 2 : 1, chunks.sizes[0]) == 1;
    std::vector<int> sizes = sizes_for(speculate, chunks, together, count_);
    if (sizes.empty()) return;
    sequence.speculation = std::make_unique<Speculation>();
    sequence.speculation->drafts = drafts;
    sequence.speculation->sizes = std::move(sizes);
    sequence.speculation->shrinks = chunks.alike;
}

void Scheduler::prefill(Sequence& sequence) {
    while (!sequence.context.cond.has_prefix()) feed(sequence.context.cond, sequence.tokens, 0);
    if (Row* uncond = sequence.context.uncond.get())
        while (!uncond->has_prefix()) feed(*uncond, sequence.tokens, 0);
}

// Feed a row's next piece, or copy the same prefix from another row. Returns how many positions were run.
// even: feed an even number of target tokens if possible, the first of them again, so that the bits do not depend on
// where the last pass ended.
int Scheduler::feed(Row& row, const std::vector<int32_t>& tokens, int position, bool even) {
    if (!row.has_prefix() && copied(row)) return 0;
    if (even && row.filled > row.start && (position - row.filled + row.start) % 2 != 0) --row.filled;
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
        bool caught_up = true, prefilled = true;
        const int before = budget;
        for (const Row* row : sequence->rows()) prefilled = prefilled && row->has_prefix();
        for (Row* row : sequence->rows())
            while (sequence->lacks(*row) > 0 || !row->has_prefix()) {
                if (budget <= 0) {
                    caught_up = false;
                    break;
                }
                budget -= feed(*row, sequence->tokens, sequence->position, sequence->speculation != nullptr);
            }
        sequence->passes += prefilled && budget < before ? 1 : 0;
        if (!caught_up) continue;
        // From the logits of each row's last piece.
        auto of = [&](const Row& row) { return (sequence->position == 0 ? row.first : row.logits).data(); };
        const Row* uncond = sequence->context.uncond.get();
        const bool guided = sequence->guided() && uncond != nullptr;
        sequence->draw(
            sampled(*sequence, sequence->position, of(sequence->context.cond), guided ? of(*uncond) : nullptr));
    }
    // Step the ready ones: those that take the same number of positions in one run.
    std::vector<Sequence*> plain, drafted;
    for (Sequence* sequence : ready) (sequence->speculation ? drafted : plain).push_back(sequence);
    if (!plain.empty()) step_together(plain, 1);
    if (drafted.empty()) return;
    std::vector<const Speculation*> speculations;
    size_t rows = 0;
    for (Sequence* sequence : drafted) {
        speculations.push_back(sequence->speculation.get());
        rows += sequence->rows().size();
    }
    int size = best_size(speculations, costs_, static_cast<int>(rows));
    if (drafted.size() == 1 && speculations[0]->shrinks) {
        const int needed = drafted[0]->window();
        size = std::min(size, needed + needed % 2);
    }
    step_together(drafted, size);
}

// The token that is sampled at a position from the rows' logits.
int32_t Scheduler::sampled(const Sequence& sequence, int position, const float* cond, const float* uncond) {
    const float* logits = cond;
    if (uncond != nullptr)
        logits = sampler_.guide(cond, uncond, vocabulary_, static_cast<float>(sequence.scales[position]));
    if (watch) watch(sequence, logits);
    return sampler_.sample(logits, vocabulary_, sequence.sampling, sequence.seed, position);
}

// One run in which every picture feeds `size` positions, and takes the tokens that are valid after it.
void Scheduler::step_together(const std::vector<Sequence*>& ready, int size) {
    struct Fed {
        Row* row;
        size_t sequence;
    };
    // Each row is fed the tokens before the position and drafts after it; both rows of a guided picture the same.
    std::vector<Fed> rows;
    std::vector<std::vector<int32_t>> fed(ready.size());
    std::vector<int> starts;
    for (size_t n = 0; n < ready.size(); ++n) {
        starts.push_back(ready[n]->chunk(size, fed[n]));
        for (Row* row : ready[n]->rows()) rows.push_back({row, n});
    }
    std::sort(rows.begin(), rows.end(), [](const Fed& a, const Fed& b) { return a.row->slot < b.row->slot; });
    batch_.rows.clear();
    batch_.past.clear();
    batch_.tokens.clear();
    for (const Fed& each : rows) {
        batch_.rows.push_back(each.row->slot);
        batch_.past.push_back(each.row->start + starts[each.sequence]);
        batch_.tokens.insert(batch_.tokens.end(), fed[each.sequence].begin(), fed[each.sequence].end());
        each.row->logits.clear();
    }
    batch_.positions = batch_.outputs = size;
    batch_.states = nullptr;
    const double before = engine_seconds;
    auto place_of = [&](const Row& row) {
        return static_cast<int>(std::lower_bound(batch_.rows.begin(), batch_.rows.end(), row.slot) -
                                batch_.rows.begin());
    };
    std::vector<Draw> draws;
    for (size_t n = 0; n < ready.size() && !watch; ++n) {
        const Sequence& own = *ready[n];
        const int cond = place_of(own.context.cond);
        const int uncond = own.guided() ? place_of(*own.context.uncond) : cond;
        for (int place = 0, at = starts[n] + 1; place < size; ++place, ++at)
            draws.push_back({cond, uncond, place, own.scales[at], &own.sampling, own.seed, at});
    }
    std::vector<int32_t> drawn;  // by the device
    const float* logits = run(batch_, draws, drawn);
    costs_.add(static_cast<int>(rows.size()), size, engine_seconds - before);
    std::vector<int32_t> made(size);
    for (size_t n = 0; n < ready.size(); ++n) {
        Sequence& sequence = *ready[n];
        for (int place = 0; place < size; ++place) {
            made[place] = drawn.empty() ? facts::UNCLEAR : drawn[n * size + place];
            if (made[place] >= 0) continue;
            if (logits == nullptr) logits = decoder_->logits();
            auto of = [&](const Row& row) {
                return logits + (static_cast<size_t>(place_of(row)) * size + place) * vocabulary_;
            };
            made[place] = sampled(sequence, starts[n] + 1 + place, of(sequence.context.cond),
                                  sequence.guided() ? of(*sequence.context.uncond) : nullptr);
        }
        sequence.accept(starts[n], fed[n], made);
    }
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
