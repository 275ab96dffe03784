// The interface between the loop and the engines: run a part, and run the decoder over a KV cache.
//
// A `Batch` goes down and logits come back. The caller keeps track of the cached positions: each batch gives the start
// of its chunks, and a smaller number rewinds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sampler_inputs.h"

namespace editar {

enum class Type { float32, int32, uint8 };

struct Feed {  // a named input; the memory is the caller's
    std::string_view name;
    Type type;
    std::vector<int64_t> shape;
    const void* data;
};

struct Array {  // an output
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> floats;  // of a float tensor
    std::vector<int32_t> ints;  // of an int32 tensor
};

// One run of the decoder: R rows of the cache, each with a chunk of S positions.
struct Batch {
    std::vector<int32_t> rows;      // [R], indices of rows of the cache: any subset, ascending
    std::vector<int32_t> past;      // [R], cached positions to keep. A row's chunk is written after them
    int positions = 1;              // S
    std::vector<int32_t> tokens;    // [R, S]; negative where the position takes its value from `states`
    const float* states = nullptr;  // [S, D], hidden states of the one row; null if all tokens are given
    int outputs = 1;                // K: the last K positions of each chunk get logits, 1 to S
};

// The chunks in which a decoder verifies drafted tokens.
struct DraftChunks {
    std::vector<int> sizes;  // numbers of positions that each row may have, even and ascending
    bool alike = false;      // whether every size gives the same logits, bit by bit; otherwise a picture keeps to one
    bool like_steps = true;  // whether their logits are those of single steps, but for the last bits
};

class Decoder {
public:
    virtual ~Decoder() = default;
    // Largest recommended number of positions of a chunk.
    virtual int piece() const = 0;
    // How many runs of the engine a batch of `rows` neighbouring rows with `positions` positions each takes.
    virtual int runs(int rows, int positions) const = 0;
    virtual DraftChunks draft_chunks() const = 0;
    // Logits [R, K, V], valid until the next run.
    virtual const float* run(const Batch& batch) = 0;
    // Run a batch whose tokens the device samples, one for each draw; negative where the host must sample from
    // `logits`. false, before anything has run, if the host must sample all.
    virtual bool run_and_draw(const Batch&, const std::vector<Draw>&, std::vector<int32_t>&) { return false; }
    // Logits [R, K, V] of a batch whose tokens the device has sampled, valid until the next run.
    virtual const float* logits() { return nullptr; }
    // Copy positions `start` to `stop - 1` of a row to another. `frozen`: the copied positions are not expected to be
    // written again, so the rows may share memory; if one is written nevertheless, the other keeps its values.
    virtual void copy(int source, int target, int start, int stop, bool frozen) = 0;
    // The contents of a row are no longer needed.
    virtual void release(int row) = 0;
};

class Backend {
public:
    virtual ~Backend() = default;
    // For users: "ONNX Runtime 1.32.0 (CPU)".
    virtual std::string name() const = 0;
    // "cpu", or the kind of device with the weights and the cache.
    virtual std::string device() const = 0;
    // Bytes that the system counts more than once in this process's memory because rows share pages.
    virtual int64_t shared_bytes() const { return 0; }
    // Measured read bandwidth of the device's memory, bytes per second; 0 of a CPU, or if it cannot be measured.
    virtual double read_bandwidth() { return 0; }
    // Bytes of the device's memory that all programs use now; 0 of a CPU, or if unknown.
    virtual int64_t memory_in_use() const { return 0; }
    // (rows, positions) for which the device has a sampler; empty if tokens are sampled on the host.
    virtual std::vector<std::pair<int, int>> samplers() const { return {}; }
    // Run only the sampler, on logits [R, K, V]. Returns tokens [R, K], negative where the host must sample.
    virtual std::vector<int32_t> sample(const float*, const SamplerInputs&) { return {}; }
    // Run a feed-forward part.
    virtual std::vector<Array> run(std::string_view part, const std::vector<Feed>& inputs) = 0;
    // The decoder with an empty cache for `rows` rows of up to `capacity` positions.
    virtual std::unique_ptr<Decoder> make_decoder(int rows, int capacity) = 0;
};

}  // namespace editar
