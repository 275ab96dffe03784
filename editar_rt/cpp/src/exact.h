// Exponential and logarithm that give the same bits on every machine: editar_rt/generation/exact.py. Single IEEE 754
// operations, so this file must be compiled without fused multiply-adds (-ffp-contract=off).
#pragma once

#include <cstdint>

namespace editar::exact {

constexpr double LOWEST = -700.0;  // exp is 0 below this, so that no result is subnormal

double exp(double x);  // x at most 700
double log(double x);  // x positive and normal

// The random number in [0, 1) of one token, keyed by the arguments: Philox 4x64 with ten rounds, as NumPy has it.
double uniform(uint64_t seed, uint64_t index, uint64_t position);
// Gumbel noise of a random word: -log(-log(u)) of its top 52 bits and a half as a number between 0 and 1.
double gumbel(uint64_t word);
// The `block`-th four words of the generator with counter (block, 0, index, position), counted from 1.
struct Words {
    uint64_t word[4];
};
Words philox(uint64_t seed, uint64_t block, uint64_t index, uint64_t position);

}  // namespace editar::exact
