#include "speculation.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "error.h"

namespace editar {

namespace {

constexpr int USUAL = 16;                   // largest size where sizes cannot change within a picture
constexpr int TRIED[] = {2, 4, 8, 16, 32};  // sizes among which the clock chooses
constexpr double PRIOR_COST = 0.06;         // of a further position, as a share of a step's, until sizes were measured
constexpr double MEMORY = 0.1;              // share of the newest outcome in the moving average of acceptance

}  // namespace

void Speculation::learn(int held, bool failed) {
    for (int n = 0; n < held; ++n) acceptance += MEMORY * (1.0 - acceptance);
    if (failed) acceptance += MEMORY * (0.0 - acceptance);
}

void Costs::add(int rows, int size, double seconds) {
    auto& [count, mean] = seconds_[{rows, size}];
    // The first two are not averaged: a shape's first run allocates memory.
    mean = count < 2 ? seconds : 0.8 * mean + 0.2 * seconds;
    ++count;
}

double Costs::relative(int rows, int size) const {
    int nearest = 0;
    double measured = 0;
    for (const auto& [shape, each] : seconds_)
        if (shape.first == rows && (nearest == 0 || std::abs(shape.second - size) < std::abs(nearest - size))) {
            nearest = shape.second;
            measured = each.second;
        }
    const double own = 1 + PRIOR_COST * size;
    return nearest == 0 ? own : measured * own / (1 + PRIOR_COST * nearest);
}

int best_size(const std::vector<const Speculation*>& all, const Costs& costs, int rows) {
    const std::vector<int>& sizes = all[0]->sizes;
    if (sizes.size() == 1) return sizes[0];
    double share = 0;
    for (const Speculation* each : all) share += each->acceptance / static_cast<double>(all.size());
    int best = sizes[0];
    double most = -1;
    for (int size : sizes) {
        double tokens = 0;
        for (int n = 0; n < size; ++n) tokens += std::pow(share, n);
        const double value = tokens / costs.relative(rows, size);
        if (value > most) {
            most = value;
            best = size;
        }
    }
    return best;
}

std::vector<int> sizes_for(int speculate, const DraftChunks& chunks, bool together, int count) {
    if (speculate == 0) return {};
    std::vector<int> allowed, sizes;
    for (int size : chunks.sizes)
        if (size <= count - 1) allowed.push_back(size);
    auto has = [&](int size) { return std::find(allowed.begin(), allowed.end(), size) != allowed.end(); };
    if (speculate == SPECULATE_AUTO) {
        if (!together || !chunks.like_steps || allowed.empty()) return sizes;
        if (!chunks.alike) {
            int largest = allowed[0];
            for (int size : allowed)
                if (size <= USUAL) largest = std::max(largest, size);
            return {largest};
        }
        for (int size : TRIED)
            if (has(size)) sizes.push_back(size);
        return sizes;
    }
    if (allowed.empty()) throw option_error("this bundle's decoder verifies no drafts; leave out speculate");
    if (has(speculate)) return {speculate};
    std::string listed;
    for (int size : allowed) listed += (listed.empty() ? "" : ", ") + std::to_string(size);
    throw option_error(
        "speculate must be EDITAR_SPECULATE_AUTO or " +
        (chunks.alike ? "an even number from 2 to " + std::to_string(allowed.back()) : "one of " + listed) +
        " for this bundle, got " + std::to_string(speculate));
}

}  // namespace editar
