// The set of engines that runs a bundle: engines have fixed shapes, calls do not. As
// editar_rt/backends/engines/plan.py.
//
// A decoder engine runs one position in several rows (a step), a few drafted positions in several rows, or many
// positions of one row (a chunk). `Plan` lists the engines; the decoder splits each call accordingly.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bundle.h"

namespace editar {

// One engine: a part with its symbolic dimensions fixed.
struct EngineShape {
    std::string part;
    int rows = 1, positions = 1;

    std::string name() const;  // of the engine in build.json
    // The fixed shape of an input or output. Throws EDITAR_BAD_BUNDLE.
    std::vector<int64_t> of(const TensorInfo& tensor) const;
    bool operator<(const EngineShape& other) const {
        return std::tie(part, rows, positions) < std::tie(other.part, other.rows, other.positions);
    }
};

// Neighbouring rows of the cache that one run covers; those that are not asked for are computed and ignored.
struct Window {
    int start;   // first row of the cache
    int size;    // rows of the engine
    int served;  // how many of the rows asked for lie in it
};

// The decoder's engines. All lists are ascending.
struct Plan {
    std::vector<int> rows;    // of the engines that run rows side by side
    std::vector<int> chunks;  // positions of the chunk engines
    std::vector<int> drafts;  // positions that rows have side by side, besides one: steps that check drafted tokens

    // (rows, positions) of the engines from whose logits tokens are sampled: steps, and drafts.
    std::vector<std::pair<int, int>> sampled() const;
    std::vector<EngineShape> decoder_shapes() const;
    // Positions that a run writes in rows that were not asked for, where the cache is updated in place.
    int unused_positions() const;
    // Rows of a cache for `count` rows: somewhat more where these fill an engine, and never less than one has.
    int padded(int count) const;
    // The engine for the first rows of `wanted` from `done` on: the one that costs least for each row that it serves.
    // held: number of rows of the cache, `padded`.
    Window window(const std::vector<int32_t>& wanted, size_t done, int held) const;
    // Positions of the engines that run up to `positions` positions in several rows together; 0 without any.
    int side_by_side(int positions) const;
    // How many runs a batch takes; `held` as in `window`.
    int runs(int count, int positions, int held) const;
    // Positions of the engine for the first of a row's `positions`: the smallest that takes all, otherwise the largest;
    // but if none fits into `room`, padding included, one position goes as a step.
    int chunk(int positions, int room) const;
};

// Bytes of a tensor with a fixed shape. Throws EDITAR_BAD_BUNDLE where they are beyond all memory.
size_t bytes_of(const TensorInfo& tensor, const std::vector<int64_t>& shape);

}  // namespace editar
