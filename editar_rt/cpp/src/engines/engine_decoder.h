// The decoder as engines of fixed shapes, with a KV cache that they share: editar_rt/backends/engines/decoder.py.
//
// The cache of all layers is one block, zeroed once, [2 · layers, rows, heads, capacity, head_dim]. Engines of the
// dialect "native" update it in place. Those of "delta" return the new keys and values, [2 · layers, rows, heads,
// positions, head_dim], which are copied to the cache. A step is recorded when it runs for the second time.
//
// An engine covers neighbouring rows of the cache, and positions up to its number. What it computes besides that which
// was asked for is not used: delta's is not copied; native's lands behind the chunk, where the next one overwrites it,
// or, for rows that were not asked for, in the last positions of the capacity, which no sequence reaches.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backend.h"
#include "engines/engine_backend.h"

namespace editar {

class EngineDecoder : public Decoder {
public:
    EngineDecoder(EngineBackend& backend, int rows, int capacity);

    int piece() const override;
    int runs(int rows, int positions) const override { return plan_.runs(rows, positions, rows_); }
    DraftChunks draft_chunks() const override;
    const float* run(const Batch& batch) override;
    bool run_and_draw(const Batch& batch, const std::vector<Draw>& draws, std::vector<int32_t>& tokens) override;
    const float* logits() override;
    void copy(int source, int target, int start, int stop, bool frozen) override;
    void release(int) override {}  // rows do not share memory here

private:
    // The part of a batch that one engine runs: neighbouring places of its rows, and some positions of their chunks.
    struct Piece {
        const Batch& batch;
        size_t first, count;  // places in the batch
        int begin, end;       // positions of the chunks
        int positions() const { return end - begin; }
        int row(size_t n) const { return batch.rows[first + n]; }
        int past(size_t n) const { return batch.past[first + n] + begin; }
    };
    using Key = std::tuple<int, EngineShape, std::string>;  // first row, shape, and how it samples

    void check_room(int end) const;
    int side_by_side(const Batch& batch) const;
    void rows_together(const Batch& batch, int positions);
    void chunk(const Batch& batch, size_t place);
    Program& run_piece(const Piece& piece, const Window& window, int positions, bool logits);
    void check(const Program& program) const;
    void fill(Program& program, const Piece& piece, const Window& window, int positions) const;
    void pass(const Program& program, int start, bool prefix, bool logits, const Program* sampler = nullptr) const;
    void pass_recorded(const Program& program, int start, const Program* sampler = nullptr);
    void place(const Program& program, const Piece& piece, const Window& window, int positions) const;

    EngineBackend& backend_;
    const Device& device_;
    const Plan& plan_;
    bool in_place_;
    int capacity_, room_, rows_, vocab_, dim_;
    size_t kinds_, heads_;                            // kinds: keys and values of every layer
    size_t position_bytes_, head_bytes_, row_bytes_;  // of one head
    std::unique_ptr<Memory> cache_;
    std::vector<std::pair<std::string, std::string>> names_;  // past and present of every kind
    std::map<Key, std::unique_ptr<Recording>> recorded_;      // null after the first run, a warm-up
    Program* drawn_from_ = nullptr;                           // of the last run whose tokens the device sampled
    std::vector<int> drawn_rows_;                             // of its logits, those of the batch
    int drawn_positions_ = 0;                                 // of each row, likewise
    std::vector<float> logits_;                               // [R, K, V]
};

}  // namespace editar
