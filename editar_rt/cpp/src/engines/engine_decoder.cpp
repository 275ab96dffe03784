#include "engines/engine_decoder.h"

#include <algorithm>

#include "error.h"
#include "facts.h"

namespace editar {

namespace {

constexpr int USUAL_DRAFTS[] = {2, 4, 8, 16};  // where the plan has no engines for drafts

}  // namespace

EngineDecoder::EngineDecoder(EngineBackend& backend, int rows, int capacity)
    : backend_(backend), device_(backend.machine()), plan_(backend.plan()) {
    const Manifest& manifest = backend.manifest();
    capacity_ = backend.capacity();
    const TensorInfo* past = backend.part(facts::DECODER).input(facts::PAST_KEY + std::string("0"));
    rows_ = plan_.padded(rows);
    heads_ = static_cast<size_t>(past->shape[1]);
    row_bytes_ = bytes_of(*past, {1, past->shape[1], past->shape[2], past->shape[3]});
    head_bytes_ = row_bytes_ / heads_;
    position_bytes_ = head_bytes_ / capacity_;
    in_place_ = !manifest.operators().returns_new_rows;
    room_ = capacity_ - (in_place_ ? plan_.unused_positions() : 0);
    check_room(capacity);
    vocab_ = manifest.model.vocab_size;
    dim_ = manifest.model.dim;
    kinds_ = 2 * static_cast<size_t>(manifest.model.layers);
    for (size_t kind = 0; kind < kinds_; ++kind) {
        const std::string number = std::to_string(kind / 2);
        names_.emplace_back((kind % 2 == 0 ? facts::PAST_KEY : facts::PAST_VALUE) + number,
                            (kind % 2 == 0 ? facts::PRESENT_KEY : facts::PRESENT_VALUE) + number);
        const TensorInfo* own = backend.part(facts::DECODER).input(names_.back().first);
        if (own == nullptr || own->dtype != past->dtype || own->shape != past->shape || own->symbols != past->symbols)
            throw bundle_error("the layers of the bundle's decoder have caches of different shapes; export it again");
    }
    const size_t size = kinds_ * rows_ * row_bytes_;
    cache_ = std::make_unique<Memory>(device_, size, false);
    device_.zero(cache_->at(0), size);
}

void EngineDecoder::check_room(int end) const {
    if (end > room_)
        throw option_error("the decoder's cache has room for " + std::to_string(room_) + " positions, but " +
                           std::to_string(end) + " are needed");
}

int EngineDecoder::piece() const {
    return plan_.chunks.empty() ? 1 : plan_.chunks.back();
}

DraftChunks EngineDecoder::draft_chunks() const {
    DraftChunks chunks{plan_.drafts, false};
    if (chunks.sizes.empty())
        for (int size : USUAL_DRAFTS)
            if (size <= piece()) chunks.sizes.push_back(size);
    return chunks;
}

const float* EngineDecoder::run(const Batch& batch) {
    check_room(*std::max_element(batch.past.begin(), batch.past.end()) + batch.positions);
    logits_.resize(batch.rows.size() * batch.outputs * static_cast<size_t>(vocab_));
    const int positions = side_by_side(batch);
    if (positions != 0) {
        rows_together(batch, positions);
    } else {
        for (size_t place = 0; place < batch.rows.size(); ++place) chunk(batch, place);
    }
    return logits_.data();
}

// Positions of the engines that run the rows of a batch together; 0 if they go one by one.
int EngineDecoder::side_by_side(const Batch& batch) const {
    const int positions = plan_.side_by_side(batch.positions);
    if (batch.positions > 1 && batch.rows.size() == 1 && positions != batch.positions) return 0;  // a chunk of one row
    const int past = *std::max_element(batch.past.begin(), batch.past.end());
    return positions != 0 && in_place_ && past + positions > capacity_ ? 0 : positions;
}

// Run rows side by side, and collect their logits.
void EngineDecoder::rows_together(const Batch& batch, int positions) {
    const size_t row_logits = static_cast<size_t>(batch.outputs) * vocab_;
    for (size_t done = 0; done < batch.rows.size();) {
        const Window window = plan_.window(batch.rows, done, rows_);
        const Piece piece{batch, done, static_cast<size_t>(window.served), 0, batch.positions};
        const auto* logits = run_piece(piece, window, positions, true).output<float>(facts::LOGITS);
        for (size_t n = 0; n < piece.count; ++n) {
            const size_t first =
                static_cast<size_t>(piece.row(n) - window.start) * positions + batch.positions - batch.outputs;
            std::copy_n(logits + first * vocab_, row_logits, logits_.data() + (done + n) * row_logits);
        }
        done += piece.count;
    }
}

// Run several positions of one row, and collect the logits of the last ones.
void EngineDecoder::chunk(const Batch& batch, size_t place) {
    const int count = batch.positions, first = count - batch.outputs;
    float* target = logits_.data() + place * batch.outputs * static_cast<size_t>(vocab_);
    for (int done = 0; done < count;) {
        const int begun = batch.past[place] + done;
        const int size = plan_.chunk(count - done, in_place_ ? capacity_ - begun : capacity_);
        Window window{batch.rows[place], 1, 1};
        if (size == 1) window = plan_.window({batch.rows[place]}, 0, rows_);
        const int stop = std::min(done + size, count), begin = std::max(done, first);
        const Piece piece{batch, place, 1, done, stop};
        const Program& program = run_piece(piece, window, size, begin < stop);
        if (begin < stop) {
            const size_t from = static_cast<size_t>(piece.row(0) - window.start) * size + (begin - done);
            target = std::copy_n(program.output<float>(facts::LOGITS) + from * vocab_,
                                 static_cast<size_t>(stop - begin) * vocab_, target);
        }
        done = stop;
    }
}

// Run a piece through an engine, and wait for its outputs.
Program& EngineDecoder::run_piece(const Piece& piece, const Window& window, int positions, bool logits) {
    Program& program = backend_.program({facts::DECODER, window.size, positions});
    if (program.passes == 0) check(program);
    fill(program, piece, window, positions);
    const bool few = positions == 1 || std::count(plan_.drafts.begin(), plan_.drafts.end(), positions) != 0;
    if (piece.batch.states == nullptr && logits && few)
        pass_recorded(program, window.start);
    else
        pass(program, window.start, piece.batch.states != nullptr, logits);
    place(program, piece, window, positions);
    device_.synchronize();
    return program;
}

// Reject an engine whose buffers are not those that `fill` writes to; the manifest may say anything.
void EngineDecoder::check(const Program& program) const {
    const int64_t rows = program.shape().rows, positions = program.shape().positions;
    program.inputs().check(facts::TOKENS, {rows, positions}, "int32");
    program.inputs().check(facts::POSITIONS, {rows, positions}, "int32");
    program.inputs().check(facts::PAST_LENGTH, {rows}, "int32");
    program.inputs().check(facts::PREFIX, {rows, positions, dim_}, "float32");
    program.outputs().check(facts::LOGITS, {rows, positions, vocab_}, "float32");
    if (in_place_) return;
    const TensorInfo& past = *backend_.part(facts::DECODER).input(facts::PAST_KEY + std::string("0"));
    program.all_outputs().check(
        facts::NEW_ROWS, {static_cast<int64_t>(kinds_), rows, static_cast<int64_t>(heads_), positions, past.shape[3]},
        past.dtype.c_str());
}

bool EngineDecoder::run_and_draw(const Batch& batch, const std::vector<Draw>& draws, std::vector<int32_t>& tokens) {
    const int rows = static_cast<int>(batch.rows.size());
    check_room(*std::max_element(batch.past.begin(), batch.past.end()) + batch.positions);
    const int positions = backend_.samplers().empty() ? 0 : side_by_side(batch);
    if (positions == 0 || batch.outputs < batch.positions) return false;
    const Window window = plan_.window(batch.rows, 0, rows_);
    // All rows of a picture must be in the same run, and the sampler's rows are neighbours.
    const int first = batch.rows.front() - window.start;
    if (window.served < rows || batch.rows.back() - batch.rows.front() >= rows) return false;
    SamplerInputs inputs(window.size, positions);
    if (!inputs.set_all(draws, first, backend_.manifest().sampler_top_k, vocab_)) return false;
    Program& program = backend_.program({facts::DECODER, window.size, positions});
    Program& sampler = backend_.program({facts::SAMPLER, window.size, positions});
    if (program.passes == 0) check(program);
    const Piece piece{batch, 0, batch.rows.size(), 0, batch.positions};
    fill(program, piece, window, positions);
    sampler.set_inputs(inputs);
    pass_recorded(program, window.start, &sampler);
    place(program, piece, window, positions);
    device_.synchronize();
    const auto* drawn = sampler.output<int32_t>(facts::sampler::DRAWN);
    tokens.clear();
    for (const Draw& draw : draws) tokens.push_back(drawn[inputs.at(first + draw.cond, draw.place)]);
    drawn_from_ = &program;
    drawn_positions_ = batch.positions;
    drawn_rows_.clear();
    for (int row : batch.rows) drawn_rows_.push_back(row - window.start);
    return true;
}

const float* EngineDecoder::logits() {
    drawn_from_->download();
    device_.synchronize();
    const auto* all = drawn_from_->output<float>(facts::LOGITS);
    const size_t row = static_cast<size_t>(drawn_positions_) * vocab_;
    const size_t pitch = static_cast<size_t>(drawn_from_->shape().positions) * vocab_;
    logits_.resize(drawn_rows_.size() * row);
    for (size_t n = 0; n < drawn_rows_.size(); ++n)
        std::copy_n(all + drawn_rows_[n] * pitch, row, logits_.data() + n * row);
    return logits_.data();
}

// Set a piece's inputs in its rows of an engine, and harmless values in the others and behind the chunks.
void EngineDecoder::fill(Program& program, const Piece& piece, const Window& window, int positions) const {
    ++program.passes;
    auto* tokens = program.input<int32_t>(facts::TOKENS);
    auto* past = program.input<int32_t>(facts::PAST_LENGTH);
    auto* places = program.input<int32_t>(facts::POSITIONS);
    const size_t all = static_cast<size_t>(window.size) * positions;
    std::fill_n(tokens, all, 0);
    std::fill_n(places, all, 0);
    std::fill_n(past, window.size, in_place_ ? capacity_ - positions : 0);
    for (size_t n = 0; n < piece.count; ++n) {
        const size_t row = static_cast<size_t>(piece.row(n) - window.start);
        const size_t source = (piece.first + n) * piece.batch.positions + piece.begin;
        std::copy_n(piece.batch.tokens.begin() + static_cast<std::ptrdiff_t>(source), piece.positions(),
                    tokens + row * positions);
        past[row] = piece.past(n);
        for (int at = 0; at < positions; ++at)  // padding may lie behind
            places[row * positions + at] = std::min(piece.past(n) + at, room_);
        if (piece.batch.states != nullptr)
            std::copy_n(piece.batch.states + static_cast<size_t>(piece.begin) * dim_,
                        static_cast<size_t>(piece.positions()) * dim_,
                        program.input<float>(facts::PREFIX) + row * positions * dim_);
    }
}

// Queue one run over the rows from `start` on. logits: whether they are copied to the host. sampler: samples from the
// logits; its tokens are copied to the host instead.
void EngineDecoder::pass(const Program& program, int start, bool prefix, bool logits, const Program* sampler) const {
    for (size_t kind = 0; kind < kinds_; ++kind) {
        void* address = cache_->at((kind * rows_ + start) * row_bytes_);
        program.context().bind(names_[kind].first, address);
        if (in_place_) program.context().bind(names_[kind].second, address);
    }
    program.upload(prefix);
    program.context().enqueue();
    if (sampler != nullptr) {
        sampler->upload(sampler->noisy);
        sampler->context().enqueue();
        sampler->download();
    } else if (logits) {
        program.download();
    }
}

// Queue a run; from the second on, as a recorded one.
void EngineDecoder::pass_recorded(const Program& program, int start, const Program* sampler) {
    const Key key{start, program.shape(), sampler == nullptr ? "" : sampler->noisy ? "noise" : "numbers"};
    const auto found = recorded_.find(key);
    if (backend_.uncaptured.empty() && found != recorded_.end()) {
        if (found->second == nullptr) {
            try {
                found->second =
                    std::make_unique<Recording>(device_, [&] { pass(program, start, false, true, sampler); });
            } catch (const CaptureError& error) {
                backend_.uncaptured = error.what();
            }
        }
        if (found->second != nullptr) {
            found->second->replay();
            return;
        }
    }
    recorded_.try_emplace(key);
    pass(program, start, false, true, sampler);
}

// Queue the copy of new keys and values into the cache, if the engine has not updated it: rows at the same position by
// one 3-D copy, others by one each.
void EngineDecoder::place(const Program& program, const Piece& piece, const Window& window, int positions) const {
    if (in_place_) return;
    const size_t pitch = positions * position_bytes_;  // of a head in the engine's output
    auto* made = static_cast<char*>(program.address(facts::NEW_ROWS));
    for (size_t first = 0, stop; first < piece.count; first = stop) {
        stop = first + 1;
        while (stop < piece.count && piece.row(stop) == piece.row(stop - 1) + 1 &&
               piece.past(stop) == piece.past(first))
            ++stop;
        const size_t row = static_cast<size_t>(piece.row(first));
        const editar_lines target{cache_->at(row * row_bytes_ + piece.past(first) * position_bytes_), head_bytes_,
                                  rows_ * row_bytes_};
        const editar_lines source{made + (row - window.start) * heads_ * pitch, pitch, window.size * heads_ * pitch};
        device_.copy_lines(target, source, piece.positions() * position_bytes_, (stop - first) * heads_, kinds_);
    }
}

void EngineDecoder::copy(int source, int target, int start, int stop, bool) {
    const size_t offset = start * position_bytes_, width = (stop - start) * position_bytes_;
    if (width == 0) return;
    auto lines = [&](int row) {
        return editar_lines{cache_->at(row * row_bytes_ + offset), head_bytes_, rows_ * row_bytes_};
    };
    device_.copy_lines(lines(target), lines(source), width, heads_, kinds_);
    device_.synchronize();
}

}  // namespace editar
