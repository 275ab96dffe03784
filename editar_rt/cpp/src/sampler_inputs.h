// The inputs of a sampling head, for steps: editar_rt/backends/sampler.py.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling.h"

namespace editar {

// How the token of a picture is sampled after a step.
struct Draw {
    int cond, uncond;  // places in the batch of its rows; equal without guidance
    double scale;
    const Sampling* sampling;
    uint64_t seed;
    int position;
};

// For R rows of logits with one position, each with settings of its own.
struct SamplerInputs {
    std::vector<int32_t> uncond_rows;  // [R], for each row, its unconditional row; its own index without guidance
    std::vector<float> numbers;        // [R], in [0, 1], or BY_NOISE; NaN makes the sampler answer UNCLEAR
    std::vector<float> cfg_scale, temperature;  // [R]
    std::vector<int32_t> top_k;                 // [R], 0 turns it off
    std::vector<float> top_p;                   // [R]
    std::vector<float> noise;                   // [R, V]; empty if no number is BY_NOISE

    explicit SamplerInputs(int rows);  // of rows whose tokens are not used
    int rows() const { return static_cast<int>(numbers.size()); }
    // Set one row's sampling, except scale and numbers. false if the host must sample instead: for a top-k above
    // `most`, which is how many logits the sampler sorts, and for top-p without a top-k.
    bool set(int row, const Sampling& sampling, int most, int vocabulary);
    // Set the inputs of a batch's rows, which begin at the row `first`. false if the host must sample for a picture.
    bool set_all(const std::vector<Draw>& draws, int first, int most, int vocabulary);
    // Set a row's noise from random words that `words(token)` gives.
    template <typename Words>
    void set_noise(int row, int vocabulary, const Words& words) {
        noise.resize(numbers.size() * vocabulary, 0.0F);
        for (int token = 0; token < vocabulary; ++token)
            noise[static_cast<size_t>(row) * vocabulary + token] = rounded_gumbel(words(token));
    }

private:
    static float rounded_gumbel(uint64_t word);
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
