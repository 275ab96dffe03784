// The inputs of a sampling head: editar_rt/backends/sampler.py.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling.h"

namespace editar {

// How a token of a picture is sampled after a pass.
struct Draw {
    int cond, uncond;  // places in the batch of its rows; equal without guidance
    int place;         // of its logits among those of a row
    double scale;
    const Sampling* sampling;
    uint64_t seed;
    int position;  // of the token in its picture
};

// For R rows of logits with K positions, each with settings of its own.
struct SamplerInputs {
    std::vector<int32_t> uncond_rows;  // [R], for each row, its unconditional row; its own index without guidance
    std::vector<float> numbers;        // [R, K], in [0, 1], or BY_NOISE; NaN makes the sampler answer UNCLEAR
    std::vector<float> cfg_scale, temperature;  // [R, K]
    std::vector<int32_t> top_k;                 // [R, K], 0 turns it off
    std::vector<float> top_p;                   // [R, K]
    std::vector<float> noise;                   // [R, K, V]; empty if no number is BY_NOISE

    SamplerInputs(int rows, int positions);  // of rows whose tokens are not used
    int rows() const { return static_cast<int>(uncond_rows.size()); }
    int positions() const { return positions_; }
    size_t at(int row, int place) const { return static_cast<size_t>(row) * positions_ + place; }
    // Set the sampling at a place, except scale and number. false if the host must sample instead: for a top-k above
    // `most`, which is how many logits the sampler sorts, for top-p without a top-k, and for a temperature that float
    // does not have.
    bool set(size_t at, const Sampling& sampling, int most, int vocabulary);
    // Set the inputs of a batch's rows, which begin at the row `first`. false if the host must sample for a picture.
    bool set_all(const std::vector<Draw>& draws, int first, int most, int vocabulary);
    // Set a place's noise from random words that `words(token)` gives.
    template <typename Words>
    void set_noise(size_t at, int vocabulary, const Words& words) {
        noise.resize(numbers.size() * vocabulary, 0.0F);
        for (int token = 0; token < vocabulary; ++token) noise[at * vocabulary + token] = rounded_gumbel(words(token));
    }

private:
    static float rounded_gumbel(uint64_t word);
    int positions_;
};

// The random words of all tokens at one position, in order.
class TokenWords {
public:
    TokenWords(uint64_t seed, int position) : seed_(seed), position_(position) {}
    uint64_t operator()(int token) const;

private:
    uint64_t seed_;
    int position_;
    mutable uint64_t block_ = 0;  // the one that is in `words_`
    mutable uint64_t words_[4] = {};
};

}  // namespace editar
