#include "sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define EDITAR_SHA_INSTRUCTIONS
#endif

namespace editar {

namespace {

// Fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

void plain_block(uint32_t* state, const uint8_t* data) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
        const uint8_t* at = data + 4 * i;
        w[i] = static_cast<uint32_t>(at[0]) << 24 | static_cast<uint32_t>(at[1]) << 16 |
               static_cast<uint32_t>(at[2]) << 8 | at[3];
    }
    for (int i = 16; i < 64; ++i) {
        const uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        const uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
        const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
        const uint32_t one = h + s1 + ((e & f) ^ (~e & g)) + rounds[i] + w[i];
        const uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
        const uint32_t two = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += added[i];
}

void plain_blocks(uint32_t* state, const uint8_t* data, size_t count) {
    for (; count > 0; --count, data += 64) plain_block(state, data);
}

#if defined(EDITAR_SHA_INSTRUCTIONS)

bool has_sha_instructions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool has_sse = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSSE3) != 0 && (c & bit_SSE4_1) != 0;
    return has_sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
}

__m128i load(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}

// The instructions hold the state's eight words a to h as (a, b, e, f) and (c, d, g, h), the first one highest.
__attribute__((target("sha,ssse3,sse4.1"))) void sha_blocks(uint32_t* state, const uint8_t* data, size_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i cdab = _mm_shuffle_epi32(load(state), 0xB1), efgh = _mm_shuffle_epi32(load(state + 4), 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; count > 0; --count, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; ++i) w[i] = _mm_shuffle_epi8(load(data + 16 * i), big_endian);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {  // four rounds each
            const __m128i words = _mm_add_epi32(w[i & 3], load(rounds + 4 * i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0E));
            if (i >= 12) continue;
            const __m128i &one = w[(i + 1) & 3], &two = w[(i + 2) & 3], &three = w[(i + 3) & 3];
            const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], one), _mm_alignr_epi8(three, two, 4));
            w[i & 3] = _mm_sha256msg2_epu32(sum, three);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#endif

using Blocks = void (*)(uint32_t*, const uint8_t*, size_t);

Blocks fastest() {
#if defined(EDITAR_SHA_INSTRUCTIONS)
    if (has_sha_instructions()) return sha_blocks;
#endif
    return plain_blocks;
}

}  // namespace

Sha256::Sha256(bool portable)
    : blocks_(plain_blocks), state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
    static const Blocks chosen = fastest();
    if (!portable) blocks_ = chosen;
}

void Sha256::add(const void* data, size_t bytes) {
    auto from = static_cast<const uint8_t*>(data);
    bytes_ += bytes;
    if (held_ > 0) {
        const size_t more = std::min(bytes, sizeof buffer_ - held_);
        std::memcpy(buffer_ + held_, from, more);
        held_ += more, from += more, bytes -= more;
        if (held_ < sizeof buffer_) return;
        blocks_(state_, buffer_, 1);
        held_ = 0;
    }
    const size_t count = bytes / sizeof buffer_;
    if (count > 0) blocks_(state_, from, count);
    from += count * sizeof buffer_, bytes -= count * sizeof buffer_;
    if (bytes > 0) std::memcpy(buffer_, from, bytes);
    held_ = bytes;
}

std::string Sha256::hex() {
    const uint64_t bits = bytes_ * 8;
    const uint8_t one = 0x80, zero = 0;
    add(&one, 1);
    while (held_ != sizeof buffer_ - 8) add(&zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    add(length, sizeof length);
    std::string out;
    for (const uint32_t word : state_)
        for (int shift = 28; shift >= 0; shift -= 4) out.push_back("0123456789abcdef"[word >> shift & 15]);
    return out;
}

}  // namespace editar
