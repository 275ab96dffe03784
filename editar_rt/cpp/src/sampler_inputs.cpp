#include "sampler_inputs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "exact.h"
#include "facts.h"

namespace editar {

SamplerInputs::SamplerInputs(int rows, int positions)
    : uncond_rows(rows),
      numbers(static_cast<size_t>(rows) * positions, 0.0F),
      cfg_scale(numbers.size(), 1.0F),
      temperature(numbers.size(), 1.0F),
      top_k(numbers.size(), 1),
      top_p(numbers.size(), 1.0F),
      positions_(positions) {
    for (int row = 0; row < rows; ++row) uncond_rows[row] = row;
}

bool SamplerInputs::set(size_t at, const Sampling& sampling, int most, int vocabulary) {
    if (sampling.greedy) return true;  // the number 0 selects the first of the largest
    const int64_t kept = sampling.top_k >= vocabulary ? 0 : sampling.top_k;
    if (kept > most || (sampling.top_p < 1 && kept == 0 && most < vocabulary)) return false;
    if (!(sampling.temperature >= std::numeric_limits<float>::min() &&
          sampling.temperature <= std::numeric_limits<float>::max()))
        return false;
    temperature[at] = static_cast<float>(sampling.temperature);
    top_k[at] = static_cast<int32_t>(kept);
    top_p[at] = static_cast<float>(sampling.top_p);
    return true;
}

bool SamplerInputs::set_all(const std::vector<Draw>& draws, int first, int most, int vocabulary) {
    for (const Draw& draw : draws) {
        const size_t at = this->at(first + draw.cond, draw.place);
        if (!set(at, *draw.sampling, most, vocabulary)) return false;
        uncond_rows[first + draw.cond] = first + draw.uncond;
        cfg_scale[at] = static_cast<float>(draw.scale);
        if (draw.sampling->greedy) continue;
        if (draw.sampling->gumbel) {
            set_noise(at, vocabulary, TokenWords(draw.seed, draw.position));
            numbers[at] = static_cast<float>(facts::self_test::BY_NOISE);
        } else {
            const double number = exact::uniform(draw.seed, 0, static_cast<uint64_t>(draw.position));
            // 0 could select a token of negligible weight in float64; NaN makes the sampler answer UNCLEAR.
            numbers[at] = number == 0 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(number);
        }
    }
    return true;
}

// `exact::gumbel` in float32, by the C library's logarithm. Its last bits may differ; the sampler's bound allows for an
// error of two roundings to float32.
float SamplerInputs::rounded_gumbel(uint64_t word) {
    const double unit = (static_cast<double>(word >> 12) + 0.5) * 0x1p-52;
    return static_cast<float>(-std::log(-std::log(unit)));
}

uint64_t TokenWords::operator()(int token) const {
    const uint64_t block = static_cast<uint64_t>(token) / 4 + 1;
    if (block != block_) {
        const exact::Words drawn = exact::philox(seed_, block, uint64_t{1} << 32, static_cast<uint64_t>(position_));
        std::copy(std::begin(drawn.word), std::end(drawn.word), std::begin(words_));
        block_ = block;
    }
    return words_[token % 4];
}

}  // namespace editar
