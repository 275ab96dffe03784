// The interface between the loop and the engines: run a part, and run the decoder over a KV cache.
//
// A `Batch` goes down and logits come back. The caller keeps track of the cached positions: each batch gives the start
// of its chunks, and a smaller number rewinds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

class Decoder {
public:
    virtual ~Decoder() = default;
    // Largest recommended number of positions of a chunk.
    virtual int piece() const = 0;
    // Whether chunks of a few positions of several rows are one run, which reads the weights once.
    virtual bool runs_chunks_together() const { return false; }
    // Largest even number of positions of a chunk that verifies drafts; 0 if there is none.
    virtual int largest_draft() const { return 0; }
    // Logits [R, K, V], valid until the next run.
    virtual const float* run(const Batch& batch) = 0;
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
    // Run a feed-forward part.
    virtual std::vector<Array> run(std::string_view part, const std::vector<Feed>& inputs) = 0;
    // The decoder with an empty cache for `rows` rows of up to `capacity` positions.
    virtual std::unique_ptr<Decoder> make_decoder(int rows, int capacity) = 0;
};

}  // namespace editar
