#include "ort/ort_decoder.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "facts.h"
#include "machine.h"

namespace editar {

namespace {

struct Stored {
    const char* name;
    ONNXTensorElementDataType type;
    size_t bytes;
};
constexpr Stored STORED[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"bfloat16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2},
    {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
};

bool is_quantized(const std::string& precision) {
    for (const auto& each : facts::PRECISIONS)
        if (precision == each.name) return each.is_quantized;
    return false;
}

}  // namespace

OrtDecoder::OrtDecoder(OrtBackend& backend, int rows, int capacity)
    : backend_(backend), ort_(backend.ort()), session_(backend.session(facts::DECODER)), capacity_(capacity) {
    const Manifest& manifest = backend.bundle().manifest();
    const PartInfo& part = *manifest.part(backend.decoder_part());
    const ModelInfo& model = manifest.model;
    layers_ = model.layers;
    heads_ = model.heads;
    vocab_ = model.vocab_size;
    dim_ = model.dim;
    const std::string& dtype = part.input(facts::PAST_KEY + std::string("0"))->dtype;
    const Stored* stored = nullptr;
    for (const Stored& each : STORED)
        if (dtype == each.name) stored = &each;
    if (stored == nullptr)
        throw bundle_error("the decoder's cache has the type " + dtype + "; export the bundle again");
    type_ = stored->type;
    position_bytes_ = stored->bytes * model.head_dim;
    // ONNX Runtime multiplies quantized weights with pairs of rows. An odd last row would run in a kernel that rounds
    // differently, and a picture's tokens would depend on its batch. A spare row at each end completes pairs.
    pairs_ = is_quantized(manifest.precision) && backend.cuda() == nullptr;
    spare_ = pairs_ ? 1 : 0;
    // Attention over a float cache rounds a chunk otherwise than a step, which integer activations amplify.
    like_steps_ = !pairs_ || manifest.kv_cache == facts::INT8;
    rows_ = rows + 2 * spare_;
    room_ = capacity + spare_;  // a full row that completes a pair gets one more position
    filled_.assign(rows_, 0);
    growth_ = manifest.operators().reads_whole_cache ? facts::GROWTH : room_;
    for (const TensorInfo& tensor : part.inputs) wanted_.insert(tensor.name);
    no_states_.assign(dim_, 0.0F);
    OrtRunOptions* options = nullptr;
    ort_.check(ort_.api().CreateRunOptions(&options), facts::DECODER);
    shrinking_ = own(ort_, options);
    ort_.check(ort_.api().AddRunConfigEntry(options, "memory.enable_memory_arena_shrinkage", "cpu:0"), facts::DECODER);
    reserve(1);
}

OrtDecoder::~OrtDecoder() {
    if (backend_.cuda() == nullptr) return;
    for (void* each : device_) backend_.cuda()->allocator()->Free(backend_.cuda()->allocator(), each);
}

int OrtDecoder::piece() const {
    return backend_.cuda() == nullptr ? facts::CHUNK : capacity_;
}

DraftChunks OrtDecoder::draft_chunks() const {
    // On a CPU, chunks of two positions and more go through the same kernels; quantized weights need even ones.
    DraftChunks chunks{{}, backend_.cuda() == nullptr, like_steps_};
    for (int size = 2; size < facts::LONG; size += 2) chunks.sizes.push_back(size);
    return chunks;
}

const float* OrtDecoder::run(const Batch& batch) {
    const size_t count = batch.rows.size();
    std::vector<int32_t> rows(count), ends(count);
    for (size_t n = 0; n < count; ++n) {
        rows[n] = batch.rows[n] + spare_;
        ends[n] = batch.past[n] + batch.positions;
    }
    const int end = *std::max_element(ends.begin(), ends.end());
    if (end > capacity_)
        throw option_error("the decoder's cache has room for " + std::to_string(capacity_) + " positions, but " +
                           std::to_string(end) + " are needed");
    reserve(end + spare_);
    if (buffers_)
        for (size_t n = 0; n < count; ++n) buffers_->prepare_write(rows[n], batch.past[n]);
    const int positions = batch.positions;
    const size_t row_logits = static_cast<size_t>(batch.outputs) * vocab_;
    // The last layer and the head of quantized weights see the positions with logits alone, also in pairs.
    const bool together = takes_chunks(positions) && !(pairs_ && batch.outputs % 2 == 1);
    const float* logits = nullptr;
    if (positions > 1 && !together) {
        logits_.resize(count * row_logits);
        for (size_t place = 0; place < count; ++place)
            chunk(batch, static_cast<int>(place), logits_.data() + place * row_logits);
        logits = logits_.data();
    } else {
        for (size_t start = 0, stop; start < count; start = stop) {  // contiguous rows together
            stop = start + 1;
            while (stop < count && rows[stop] == rows[stop - 1] + 1) ++stop;
            const int size = static_cast<int>(stop - start);
            const int32_t *tokens = batch.tokens.data() + start * positions, *past = batch.past.data() + start;
            if (positions == 1)
                logits = step(rows[start], size, tokens, past, batch.states);
            else if (batch.outputs == positions)
                logits = repeated(rows[start], size, positions, tokens, past, batch.states);
            else
                logits = once(rows[start], size, positions, batch.outputs, tokens, past, batch.states);
            if (stop - start == count) break;
            logits_.resize(count * row_logits);
            std::copy_n(logits, size * row_logits, logits_.data() + start * row_logits);
            logits = logits_.data();
        }
    }
    for (size_t n = 0; n < count; ++n) filled_[rows[n]] = ends[n];
    return logits;
}

void OrtDecoder::copy(int source, int target, int start, int stop, bool frozen) {
    source += spare_;
    target += spare_;
    if (buffers_) {
        buffers_->copy(source, target, start, stop, frozen);
    } else {  // whole rows: positions after `stop` are written before they are read
        for (void* buffer : device_) {
            auto place = static_cast<uint8_t*>(buffer);
            backend_.cuda()->copy(place + source * row_bytes_, place + target * row_bytes_, row_bytes_);
        }
    }
    filled_[target] = stop;
}

// Memory.

void OrtDecoder::reserve(int positions) {
    if (positions <= allocated_) return;
    const int target = std::min((positions + growth_ - 1) / growth_ * growth_, room_);
    bindings_.clear();
    repeated_.clear();
    auto made = std::make_unique<RowBuffers>(backend_.cuda() == nullptr ? 2 * layers_ : 1, rows_, heads_, target,
                                             position_bytes_);
    const int places = (*made)[0].positions();
    row_bytes_ = (*made)[0].row_bytes();
    if (backend_.cuda() == nullptr) {
        const size_t old_bytes = buffers_ ? (*buffers_)[0].head_bytes() : 0;
        for (size_t n = 0; buffers_ && n < buffers_->size(); ++n)
            for (int row = 0; row < rows_; ++row)
                for (int head = 0; head < heads_; ++head)
                    std::memcpy((*made)[n].head(row, head), (*buffers_)[n].head(row, head), old_bytes);
        buffers_ = std::move(made);
    } else {  // the CPU's buffer of zeros only fills the device's memory
        const CudaCopier& cuda = *backend_.cuda();
        for (void* each : device_) cuda.allocator()->Free(cuda.allocator(), each);
        const bool had = !device_.empty();
        device_.clear();
        if (had)
            throw unsupported("this dialect's cache would have to grow on CUDA; export the bundle in the dialect ort");
        for (int n = 0; n < 2 * layers_; ++n) {
            void* memory = cuda.allocator()->Alloc(cuda.allocator(), (*made)[0].bytes());
            if (memory == nullptr)
                throw backend_error("the GPU has no memory for the KV cache; free some and try again");
            device_.push_back(memory);
            cuda.copy((*made)[0].data(), memory, (*made)[0].bytes(), true);
        }
    }
    allocated_ = places;
}

OrtDecoder::Bound OrtDecoder::bind(int first_row, int rows) {
    const OrtApi& api = ort_.api();
    OrtIoBinding* raw = nullptr;
    ort_.check(api.CreateIoBinding(session_, &raw), facts::DECODER);
    Bound bound;
    bound.binding = own(ort_, raw);
    const Manifest& manifest = backend_.bundle().manifest();
    const int64_t sizes[] = {rows, heads_, allocated_, manifest.model.head_dim};
    const OrtMemoryInfo* memory = backend_.cuda() == nullptr ? nullptr : backend_.cuda()->memory();
    for (int layer = 0; layer < layers_; ++layer) {
        const std::string number = std::to_string(layer);
        const std::string names[2][2] = {{facts::PAST_KEY + number, facts::PRESENT_KEY + number},
                                         {facts::PAST_VALUE + number, facts::PRESENT_VALUE + number}};
        for (int kind = 0; kind < 2; ++kind) {
            const size_t buffer = 2 * static_cast<size_t>(layer) + kind;
            auto* place = buffers_ ? (*buffers_)[buffer].data() : static_cast<uint8_t*>(device_[buffer]);
            place += first_row * row_bytes_;
            bound.cache.push_back(own(ort_, ort_.value(place, rows * row_bytes_, sizes, 4, type_, memory)));
            ort_.check(api.BindInput(raw, names[kind][0].c_str(), bound.cache.back().get()), facts::DECODER);
            ort_.check(api.BindOutput(raw, names[kind][1].c_str(), bound.cache.back().get()), facts::DECODER);
        }
    }
    return bound;
}

void OrtDecoder::set_input(Bound& bound, std::string_view name, const void* data, std::vector<int64_t> shape,
                           Type type) {
    if (wanted_.count(name) == 0) return;  // dialects differ
    size_t bytes = 4;
    for (int64_t size : shape) bytes *= size;
    ValuePtr value = own(ort_, ort_.value(const_cast<void*>(data), bytes, shape.data(), shape.size(),
                                          type == Type::float32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                                                : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32));
    ort_.check(ort_.api().BindInput(bound.binding.get(), name.data(), value.get()), facts::DECODER);
    bound.inputs[name] = std::move(value);
}

void OrtDecoder::set_output(Bound& bound, int rows, int outputs) {
    bound.logits.resize(static_cast<size_t>(rows) * outputs * vocab_);
    const int64_t shape[] = {rows, outputs, vocab_};
    bound.output = own(ort_, ort_.value(bound.logits.data(), bound.logits.size() * sizeof(float), shape, 3,
                                        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    ort_.check(ort_.api().BindOutput(bound.binding.get(), facts::LOGITS, bound.output.get()), facts::DECODER);
}

void OrtDecoder::run_bound(Bound& bound, bool gives_back) {
    ort_.check(ort_.api().RunWithBinding(session_, gives_back ? shrinking_.get() : nullptr, bound.binding.get()),
               facts::DECODER);
    if (gives_back) trim_heap();
}

// Steps: one position of each row.

const float* OrtDecoder::step(int first, int count, const int32_t* tokens, const int32_t* past, const float* states) {
    if (!(pairs_ && count % 2 == 1)) return repeated(first, count, 1, tokens, past, states);
    const int extra = adjacent(first, count);
    if (buffers_) buffers_->prepare_write(extra, filled_[extra]);
    std::vector<int32_t> all_tokens(tokens, tokens + count), all_past(past, past + count);
    const int place = extra < first ? 0 : count;
    all_tokens.insert(all_tokens.begin() + place, 0);
    all_past.insert(all_past.begin() + place, filled_[extra]);
    const float* logits = repeated(std::min(extra, first), count + 1, 1, all_tokens.data(), all_past.data(), states);
    return place == 0 ? logits + vocab_ : logits;
}

// An adjacent row that makes the number of rows even; an unneeded one if possible. It is written at the position after
// its contents, which nothing reads.
int OrtDecoder::adjacent(int first, int count) const {
    const int before = first - 1, after = first + count;
    if (before < 0) return after;
    if (after >= rows_) return before;
    return filled_[after] < filled_[before] ? after : before;
}

// A run of contiguous rows whose shape recurs, with logits of all positions.
const float* OrtDecoder::repeated(int first_row, int rows, int positions, const int32_t* tokens, const int32_t* past,
                                  const float* states) {
    if (states != nullptr) return once(first_row, rows, positions, positions, tokens, past, states);
    const Shape key{first_row, rows, positions};
    auto found = repeated_.find(key);
    if (found == repeated_.end()) {
        found = repeated_.emplace(key, bind(first_row, rows)).first;
        Bound& made = found->second;
        made.tokens.assign(static_cast<size_t>(rows) * positions, 0);
        made.past.assign(rows, 0);
        made.last.assign(rows, 0);
        made.lengths.assign(rows, positions);
        for (int n = 0; n < positions; ++n) made.positions.push_back(n);
        set_input(made, facts::TOKENS, made.tokens.data(), {rows, positions}, Type::int32);
        set_input(made, facts::PREFIX, no_states_.data(), {1, 1, dim_}, Type::float32);
        set_input(made, facts::LOGIT_POSITIONS, made.positions.data(), {positions}, Type::int32);
        set_input(made, facts::PAST_LENGTH, made.past.data(), {rows}, Type::int32);
        set_input(made, facts::LAST_ROW, made.last.data(), {rows}, Type::int32);
        set_input(made, facts::TOTAL_LENGTH, &made.total, {}, Type::int32);
        set_input(made, facts::CHUNK_LENGTHS, made.lengths.data(), {rows}, Type::int32);
        set_output(made, rows, positions);
    }
    Bound& bound = found->second;
    std::copy_n(tokens, bound.tokens.size(), bound.tokens.begin());
    std::copy_n(past, rows, bound.past.begin());
    for (int n = 0; n < rows; ++n) bound.last[n] = past[n] + positions - 1;
    bound.total = *std::max_element(past, past + rows) + positions;
    run_bound(bound, false);
    return bound.logits.data();
}

// One run of contiguous rows, with logits of the last positions.
const float* OrtDecoder::once(int first_row, int rows, int positions, int outputs, const int32_t* tokens,
                              const int32_t* past, const float* states) {
    const Rows key{first_row, rows};
    auto found = bindings_.find(key);
    if (found == bindings_.end()) found = bindings_.emplace(key, bind(first_row, rows)).first;
    Bound& bound = found->second;
    bound.past.assign(past, past + rows);
    bound.last.clear();
    for (int n = 0; n < rows; ++n) bound.last.push_back(past[n] + positions - 1);
    bound.lengths.assign(rows, positions);
    bound.total = *std::max_element(past, past + rows) + positions;
    bound.positions.clear();
    for (int n = positions - outputs; n < positions; ++n) bound.positions.push_back(n);
    set_input(bound, facts::TOKENS, tokens, {rows, positions}, Type::int32);
    if (states == nullptr)
        set_input(bound, facts::PREFIX, no_states_.data(), {1, 1, dim_}, Type::float32);
    else
        set_input(bound, facts::PREFIX, states, {1, positions, dim_}, Type::float32);
    set_input(bound, facts::LOGIT_POSITIONS, bound.positions.data(), {outputs}, Type::int32);
    set_input(bound, facts::PAST_LENGTH, bound.past.data(), {rows}, Type::int32);
    set_input(bound, facts::LAST_ROW, bound.last.data(), {rows}, Type::int32);
    set_input(bound, facts::TOTAL_LENGTH, &bound.total, {}, Type::int32);
    set_input(bound, facts::CHUNK_LENGTHS, bound.lengths.data(), {rows}, Type::int32);
    set_output(bound, rows, outputs);
    run_bound(bound, backend_.cuda() == nullptr && positions >= facts::LONG);
    return bound.logits.data();
}

// Whether chunks of this length of several rows are one run. Long ones are not: their memory would add up. Quantized
// weights are multiplied with pairs of positions, and no row may share a pair with another.
bool OrtDecoder::takes_chunks(int positions) const {
    return wanted_.count(facts::CHUNK_LENGTHS) != 0 && positions < facts::LONG && !(pairs_ && positions % 2 == 1);
}

// A chunk of one row, in pieces, because temporary memory grows with the length of a piece.
void OrtDecoder::chunk(const Batch& batch, int place, float* logits) {
    const int row = batch.rows[place] + spare_, count = batch.positions, first_output = count - batch.outputs;
    const int32_t* own = batch.tokens.data() + static_cast<size_t>(place) * count;
    std::vector<int32_t> tokens(own, own + count);
    // Tokens go in pairs, as in steps and drafts, so that it makes no difference which of these they come by. A
    // position behind an odd number of them is overwritten by the next run.
    const int even = pairs_ && batch.states == nullptr ? 2 : 1, length = count + count % even;
    tokens.resize(length);
    for (int start = 0; start < length; start += piece()) {
        const int stop = std::min(start + piece(), length), past = batch.past[place] + start;
        // The graph returns logits of at least one position.
        int begin = std::min(std::max(start, first_output), stop - 1);
        begin -= (stop - begin) % even;
        const float* states = batch.states == nullptr ? nullptr : batch.states + static_cast<size_t>(start) * dim_;
        const float* found = once(row, 1, stop - start, stop - begin, tokens.data() + start, &past, states);
        const int from = std::max(start, first_output), to = std::min(stop, count);
        if (from < to)
            logits = std::copy_n(found + static_cast<size_t>(from - begin) * vocab_,
                                 static_cast<size_t>(to - from) * vocab_, logits);
    }
}

}  // namespace editar
