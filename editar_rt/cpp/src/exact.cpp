#include "exact.h"

#include <cmath>
#include <cstring>

namespace editar::exact {

namespace {

// ln 2 as a sum. The first has 43 bits, so that its product with an exponent of 10 bits is exact.
constexpr double LN2_HIGH = 0x1.62e42fefa38p-1, LN2_LOW = 0x1.ef35793c7673p-45;
constexpr double PER_LN2 = 0x1.71547652b82fep+0, ROOT_HALF = 0x1.6a09e667f3bcdp-1;
constexpr int TERMS = 13;  // of Taylor's series: the next one is below 2^-57
constexpr double FACTORIALS[TERMS + 1] = {1,    1,     2,      6,       24,       120,       720,
                                          5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800};

// The high and the low word of a product.
inline uint64_t multiply(uint64_t a, uint64_t b, uint64_t& high) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 Wide;
    const Wide product = static_cast<Wide>(a) * b;
    high = static_cast<uint64_t>(product >> 64);
    return static_cast<uint64_t>(product);
#else
    const uint64_t a0 = a & 0xFFFFFFFF, a1 = a >> 32, b0 = b & 0xFFFFFFFF, b1 = b >> 32;
    const uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xFFFFFFFF);
    high = a1 * b1 + (middle >> 32) + (other >> 32);
    return (other << 32) | (low & 0xFFFFFFFF);
#endif
}

}  // namespace

double exp(double x) {
    // x = k ln 2 + r with an integer k and |r| <= ln 2 / 2; e^x = 2^k e^r.
    if (!(x >= LOWEST)) return x < LOWEST ? 0.0 : x;
    const double k = std::nearbyint(x * PER_LN2);
    double r = x - k * LN2_HIGH;
    r -= k * LN2_LOW;
    double sum = 1.0 / FACTORIALS[TERMS];
    for (int n = TERMS - 1; n >= 0; --n) {
        sum *= r;
        sum += 1.0 / FACTORIALS[n];
    }
    const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;  // 2^k
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

double log(double x) {
    // x = 2^k (1 + f) with 1 + f between the roots of 1/2 and 2; log(1 + f) = 2 artanh(s) with s = f / (2 + f).
    int exponent = 0;
    const double fraction = std::frexp(x, &exponent);
    const bool low = fraction < ROOT_HALF;
    const double k = exponent - (low ? 1 : 0);
    const double f = (low ? fraction + fraction : fraction) - 1.0;
    const double s = f / (f + 2.0);
    const double z = s * s;
    double sum = 2.0 / 23.0;
    for (int n = 10; n > 0; --n) {
        sum *= z;
        sum += 2.0 / (2 * n + 1);
    }
    sum *= z;
    const double tail = (f - s * (f - sum)) + k * LN2_LOW;
    return k * LN2_HIGH + tail;
}

Words philox(uint64_t seed, uint64_t block, uint64_t index, uint64_t position) {
    uint64_t c0 = block, c1 = 0, c2 = index, c3 = position, k0 = seed, k1 = 0;
    for (int round = 0; round < 10; ++round) {
        uint64_t first_high = 0, second_high = 0;
        const uint64_t first = multiply(0xD2E7470EE14C6C93U, c0, first_high);
        const uint64_t second = multiply(0xCA5A826395121157U, c2, second_high);
        const uint64_t mixed0 = second_high ^ c1 ^ k0, mixed2 = first_high ^ c3 ^ k1;
        c0 = mixed0;
        c1 = second;
        c2 = mixed2;
        c3 = first;
        k0 += 0x9E3779B97F4A7C15U;
        k1 += 0xBB67AE8584CAA73BU;
    }
    return {{c0, c1, c2, c3}};
}

double gumbel(uint64_t word) {
    return -log(-log((static_cast<double>(word >> 12) + 0.5) * 0x1p-52));
}

double uniform(uint64_t seed, uint64_t index, uint64_t position) {
    return static_cast<double>(philox(seed, 1, index, position).word[0] >> 11) * 0x1p-53;
}

}  // namespace editar::exact
