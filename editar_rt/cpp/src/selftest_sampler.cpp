// The self-test of sampling heads: synthetic logits, and the tokens that the exporting machine's host sampled from
// them.
#include <algorithm>
#include <cmath>
#include <set>

#include "exact.h"
#include "facts.h"
#include "sampler_inputs.h"
#include "selftest.h"

namespace editar {

namespace {

constexpr double CLEAR = 0.1;  // the least distance of the best token's sum from the second's, with noise

struct Example {
    bool guided;
    Sampling sampling;
    double scale, number;
    uint64_t seed;  // of the noise, where the number is BY_NOISE
};

std::vector<Sampling> samplings() {
    std::vector<Sampling> all;
    for (const auto& row : facts::self_test::SAMPLINGS) {
        Sampling own;
        own.cfg_scale = row.cfg_scale;
        own.temperature = row.temperature;
        own.top_k = row.top_k;
        own.top_p = row.top_p;
        own.greedy = row.greedy;
        own.gumbel = row.gumbel;
        all.push_back(own);
    }
    return all;
}

// Logits [V] of a conditional row; half of them are those of the unconditional one.
std::vector<float> example_logits(int size, double factor) {
    std::vector<float> logits;
    for (int32_t number : spread(size, size))
        logits.push_back(static_cast<float>(std::max(-0.02 * number, -30.0) * factor));
    return logits;
}

// The numbers in the middle of the intervals of the two most likely tokens.
std::vector<double> clear_numbers(const std::vector<double>& weights) {
    double total = 0, sum = 0;
    for (double weight : weights) total += weight;
    std::vector<double> middles;
    std::vector<size_t> order;
    for (size_t n = 0; n < weights.size(); ++n) {
        const double probability = weights[n] / total;
        sum += probability;
        middles.push_back(sum - probability / 2);
        order.push_back(n);
    }
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
    return {middles[order[0]], middles[order[1]]};
}

// The first seed from `seed` on with which the best token is well ahead of the second.
uint64_t clear_seed(const std::vector<int32_t>& kept, const std::vector<double>& weights, uint64_t seed) {
    for (;; ++seed) {
        const TokenWords words(seed, 0);
        double best = -HUGE_VAL, second = -HUGE_VAL;
        for (size_t n = 0; n < kept.size(); ++n) {
            const double sum = std::log(weights[n]) + exact::gumbel(words(kept[n]));
            second = std::max(second, std::min(best, sum));
            best = std::max(best, sum);
        }
        if (best - second > CLEAR) return seed;
    }
}

std::vector<Example> examples(int size, int most) {
    const std::vector<float> cond = example_logits(size, 1.0), uncond = example_logits(size, 0.5);
    std::vector<Example> all;
    for (const Sampling& sampling : samplings()) {
        Sampler sampler;
        const double scale = sampling.scales(1)[0];
        const float* row = sampling.guided()
                               ? sampler.guide(cond.data(), uncond.data(), size, static_cast<float>(scale))
                               : cond.data();
        if (!SamplerInputs(1, 1).set(0, sampling, most, size)) continue;
        if (sampling.greedy) {
            all.push_back({sampling.guided(), sampling, scale, 0.0, 0});
            continue;
        }
        Sampler candidates;
        candidates.choose(row, size, sampling);
        if (sampling.gumbel) {
            for (const uint64_t seed : {0, 1000})
                all.push_back({sampling.guided(), sampling, scale, facts::self_test::BY_NOISE,
                               clear_seed(candidates.kept(), candidates.weights(), seed)});
        } else {
            for (const double number : clear_numbers(candidates.weights()))
                all.push_back({sampling.guided(), sampling, scale, number, 0});
        }
    }
    return all;
}

// What a sampler draws where the K examples stand side by side, [R][K]; the last row of guided ones is unconditional.
// `cond` and `uncond` are the logits of all examples.
std::vector<int32_t> drawn_side_by_side(Backend& backend, const std::vector<const Example*>& own, int rows,
                                        const std::vector<float>& cond, const std::vector<float>& uncond, int most) {
    const int size = static_cast<int>(cond.size());
    SamplerInputs inputs(rows, static_cast<int>(own.size()));
    std::vector<float> logits;
    logits.reserve(cond.size() * rows * own.size());
    for (int row = 0; row < rows; ++row) {
        if (own[0]->guided) inputs.uncond_rows[row] = rows - 1;
        const std::vector<float>& given = own[0]->guided && row == rows - 1 ? uncond : cond;
        for (size_t place = 0; place < own.size(); ++place) {
            const Example& example = *own[place];
            const size_t at = inputs.at(row, static_cast<int>(place));
            logits.insert(logits.end(), given.begin(), given.end());
            inputs.set(at, example.sampling, most, size);
            inputs.numbers[at] = static_cast<float>(example.number);
            inputs.cfg_scale[at] = static_cast<float>(example.scale);
            if (example.number == facts::self_test::BY_NOISE) inputs.set_noise(at, size, TokenWords(example.seed, 0));
        }
    }
    return backend.sample(logits.data(), inputs);
}

// The tokens of a kind, which is added at the end if it is new.
std::vector<int32_t>& tokens_of(SamplerAnswers& answers, const std::string& label) {
    for (auto& each : answers)
        if (each.first == label) return each.second;
    answers.emplace_back(label, std::vector<int32_t>());
    return answers.back().second;
}

}  // namespace

SamplerAnswers sampler_answers(Backend& backend, const Manifest& manifest) {
    const int size = std::max(manifest.model.vocab_size, 1), most = manifest.sampler_top_k;
    const std::vector<float> cond = example_logits(size, 1.0), uncond = example_logits(size, 0.5);
    const std::vector<Example> all = examples(size, most);
    SamplerAnswers answers;
    for (const auto& [rows, positions] : backend.samplers()) {
        for (const bool guided : {false, true}) {
            if (guided && rows == 1) continue;
            std::vector<const Example*> own;
            for (const Example& example : all)
                if (example.guided == guided) own.push_back(&example);
            const std::string kind = std::string(facts::sampler::DRAWN) + (guided ? ", guided" : ", not guided");
            std::vector<int32_t>& tokens = tokens_of(answers, kind);
            std::vector<std::set<int32_t>> found(own.size());
            // Every example stands at every position, beside others.
            for (size_t first = 0; first < own.size(); ++first) {
                auto example_at = [&, first = first](size_t place) { return (first + place) % own.size(); };
                std::vector<const Example*> beside;
                beside.reserve(positions);
                for (int place = 0; place < positions; ++place) beside.push_back(own[example_at(place)]);
                const std::vector<int32_t> drawn = drawn_side_by_side(backend, beside, rows, cond, uncond, most);
                const size_t counted = drawn.size() - (guided ? positions : 0);
                for (size_t n = 0; n < counted; ++n) found[example_at(n % positions)].insert(drawn[n]);
            }
            for (size_t n = 0; n < own.size(); ++n) {
                const int32_t token = found[n].size() == 1 ? *found[n].begin() : facts::UNCLEAR;
                if (n == tokens.size()) tokens.push_back(token);
                if (tokens[n] != token) tokens[n] = facts::UNCLEAR;  // of another sampler
            }
        }
    }
    return answers;
}

}  // namespace editar
