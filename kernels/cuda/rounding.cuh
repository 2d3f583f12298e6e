// Stochastic rounding: up or down at random, so that the mean is what was rounded. A step of Adam that is smaller than half of the
// spacing of a format, or the decay of a second moment, would be lost at every step by rounding to nearest.
//
//   bf16: v → the upper half of bits(v) + r, r uniform in [0, 2¹⁶): up with the chance of what is cut off
//
// r is a function of (seed, step, tensor, feature, column) and of nothing else: the same bits on every launch, on either path, and
// however features are spread over ranks. It comes from Philox 4×32 with 7 rounds (J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel
// random numbers: as easy as 1, 2, 3, 2011): a block cipher of a counter, without state; 7 rounds are the fewest that pass all tests there.
#pragma once
#include "columns.cuh"

// Random bits for four neighbouring columns.
struct Random {
    u32 v[4];

    // Two independent sixteens for column i.
    __device__ __forceinline__ u32 low(int i) const { return v[i] & 0xffffu; }
    __device__ __forceinline__ u32 high(int i) const { return v[i] >> 16; }
};

static __device__ __forceinline__ Random philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
    constexpr u32 ROUNDS = 7, FACTOR0 = 0xd2511f53u, FACTOR1 = 0xcd9e8d57u;
#pragma unroll
    for (u32 round = 0; round < ROUNDS; ++round) {
        const u32 high0 = __umulhi(FACTOR0, c0), low0 = FACTOR0 * c0;
        const u32 high1 = __umulhi(FACTOR1, c2), low1 = FACTOR1 * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1;
        c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// What is rounded: numbers of one column take their bits from different draws.
enum Rounded : u32 { ROUNDED_MOMENTS = 0, ROUNDED_WEIGHTS = 1 };

// What the random bits of a row are keyed by. `feature` counts over all ranks; `tensor` is 0 for W_enc and 1 for W_dec.
struct Key {
    u64 seed, step;
    u32 feature, tensor;

    // For the columns from d on, a multiple of 4: its low bits are free.
    __device__ __forceinline__ Random draw(u32 d, Rounded what) const {
        return philox(feature, d | tensor << 1 | what, (u32)step, (u32)(step >> 32), (u32)seed, (u32)(seed >> 32));
    }
};

// `random` is uniform in [0, 2¹⁶). Infinity stays, and so does a NaN.
static __device__ __forceinline__ bf16 round_stochastically(float v, u32 random) {
    const u32 bits = __float_as_uint(v);
    if ((bits & 0x7f800000u) == 0x7f800000u) return to_bf16(v);
    return {(u16)((bits + random) >> 16)};
}
