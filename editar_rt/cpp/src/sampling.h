// From logits to tokens: guidance, temperature, top-k, top-p and sampling. The same bits as
// editar_rt/generation/sampling.py and guidance.py, on every processor.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "editar/editar.h"
#include "json.h"

namespace editar {

struct Sampling {
    int32_t shape = EDITAR_CFG_CONSTANT;   // of the guidance's schedule
    double cfg_scale, cfg_last = 0;        // the last one of schedules
    std::vector<double> cfg_scales;        // one per token, in place of the others
    int64_t cfg_start = 0, cfg_stop = -1;  // (0, -1) is all
    bool interval_is_number = true;        // given as Python's single number, cfg_stop - 2
    double temperature, top_p;
    int64_t top_k;
    uint64_t seed = 0;
    bool greedy = false;
    bool gumbel = false;  // noise for every token of the vocabulary, in place of one number

    Sampling();  // EditAR's
    // The bundle's defaults over EditAR's. Throws EDITAR_BAD_BUNDLE.
    static Sampling of_bundle(const Json& given, const std::string& folder);
    // A caller's struct over defaults. `count`: N, 0 where it is not known. Throws EDITAR_BAD_ARGUMENT.
    Sampling with(const editar_sampling* given, int count) const;

    bool guided() const;  // whether any token may need the unconditional row
    // The scale of every token; 1, which means none, outside the interval.
    std::vector<double> scales(int count) const;
    // The settings as Python stores them in pictures, in order.
    std::vector<std::pair<std::string, std::string>> settings(int count) const;

private:
    void take(const std::string& name, const Json& value);
};

// One token from logits [size]. Throws EDITAR_BACKEND_FAILED where they are not finite.
class Sampler {
public:
    int32_t sample(const float* logits, int size, const Sampling& sampling, uint64_t seed, int position);
    // The tokens that top-k and then top-p keep, ascending, and their weights, the largest of which is 1; valid until
    // the next call. Throws EDITAR_BACKEND_FAILED where the logits are not finite.
    void choose(const float* logits, int size, const Sampling& sampling);
    const std::vector<int32_t>& kept() const { return kept_; }
    const std::vector<double>& weights() const { return weights_; }
    // Classifier-free guidance; the result is valid until the next call.
    const float* guide(const float* cond, const float* uncond, int size, float scale);

private:
    void keep_largest(const float* logits, int size, int64_t top_k);
    void weigh(const float* logits, float peak, const Sampling& sampling);
    int32_t with_uniform(double number) const;
    int32_t with_gumbel(const float* logits, float peak, double temperature, uint64_t seed, int position) const;

    std::vector<float> guided_, values_;
    std::vector<int32_t> kept_, order_;
    std::vector<double> weights_;
};

// A number as Python's repr gives it, and as its format(number, "g").
std::string python_repr(double number);
std::string python_g(double number);

}  // namespace editar
