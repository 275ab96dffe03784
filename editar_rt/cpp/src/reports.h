// What `editar info`, `verify` and `bench` print with --json, as text of one JSON document each.
#pragma once

#include <string>

#include "bundle.h"
#include "model.h"

namespace editar {

// The contents of a bundle, and the memory that it needs.
std::string describe(const Bundle& bundle, bool checked);

// Repeat the bundle's self-test, and check that a row's outputs do not depend on the rows that run with it. `fault`:
// what differs, in a sentence; "" where all holds. Throws EDITAR_BAD_BUNDLE where the bundle has no self-test.
std::string verify(Model& model, std::string& fault);

struct BenchPlan {
    int repeats = 5, warmup = 1;
    int at = 0;     // cached positions at the first step; 0 is right after the prefill
    int steps = 0;  // decode steps of a repeat; 0 is to the end of the picture
};
std::string bench(Model& model, const BenchPlan& plan, const Sampling& sampling);

// Bytes of the keys and values of one position of one row in all layers; 0 without a decoder.
int64_t cache_bytes_per_position(const Manifest& manifest);

}  // namespace editar
