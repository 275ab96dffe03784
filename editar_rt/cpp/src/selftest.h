// The pieces of a bundle's self-test, for `verify` and for the gate of engines: editar_rt/measure/selftest.py.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "json_text.h"
#include "model.h"

namespace editar {

struct Comparison {
    std::string part, output;
    double difference, error, bound;
    bool identical;
    bool holds() const { return error <= bound; }  // false for NaN
};

// As reports list it; `part_name` is their name for the part.
JsonText as_json(const Comparison& check, const char* part_name);

// A way to run the decoder; all ways must give the same outputs.
struct Way {
    int rows = 1;    // that run together, all with the same sequence
    int row = 0;     // whose outputs are used
    int pieces = 1;  // of the prefill: 1, or 2 with tokens and text separately
};

// Repeat the self-test of some parts; the decoder needs the prefix. Throws EDITAR_BAD_BUNDLE where it is incomplete.
std::vector<Comparison> self_test(Model& model, const std::vector<std::string>& parts, const Way& way = {});

// Tokens that the device's samplers draw from examples, by their kind; with guidance, the last row is unconditional.
using SamplerAnswers = std::vector<std::pair<std::string, std::vector<int32_t>>>;
SamplerAnswers sampler_answers(Backend& backend, const Manifest& manifest);

// `count` numbers spread over 0 to size - 1.
std::vector<int32_t> spread(int64_t count, int64_t size);
// The largest allowed error of a part.
double bound_of(const Manifest& manifest, const std::string& part);
// A largest absolute difference as a share of the largest expected value.
double relative_error(double difference, double largest);

}  // namespace editar
