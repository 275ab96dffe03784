// A pass takes several positions whose tokens were drafted and are verified: editar_rt/generation/strategy.py.
//
// Its tokens are sampled with the random numbers of plain steps. If a drafted token equals the sampled one, the next
// sampled token is valid too; from the first wrong draft on, none is.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "backend.h"

namespace editar {

constexpr int SPECULATE_AUTO = -1;

// How one sequence takes several positions in a pass.
struct Speculation {
    std::vector<int32_t> drafts;  // [N]: what the last pass sampled at a position; at first, the source's tokens
    std::vector<int> sizes;       // numbers of positions that a pass may have, even and ascending
    bool shrinks = false;         // whether any even number below these gives the same bits
    double acceptance = 0.7;      // moving average of the share of drafts that hold

    void learn(int held, bool failed);
};

// Measured seconds of passes, by rows and positions.
class Costs {
public:
    void add(int rows, int size, double seconds);
    double relative(int rows, int size) const;

private:
    std::map<std::pair<int, int>, std::pair<int, double>> seconds_;
};

// The number of positions with the most tokens for its cost.
int best_size(const std::vector<const Speculation*>& all, const Costs& costs, int rows);

// The numbers of positions that a pass may have; empty for plain decoding. Throws EDITAR_BAD_ARGUMENT.
// together: whether both rows of a picture go through the decoder in one run. count: N.
std::vector<int> sizes_for(int speculate, const DraftChunks& chunks, bool together, int count);

}  // namespace editar
