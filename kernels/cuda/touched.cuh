// Which features the tokens of a rank have touched, and where their rows lie when only those are kept: one behind the other, in the
// order of the features.
#pragma once
#include "device.cuh"

struct Touched {
    // A bit a feature, and how many are set before each word. Null: all are touched.
    const u32* touched_w;
    const u32* before_w;
    // The feature whose row would be the first: a multiple of 32 beside bits.
    u32 first;

    // Whether feature f is touched, and its row.
    __device__ __forceinline__ bool find(u32 f, u32& row) const {
        if (!touched_w) {
            row = f - first;
            return true;
        }
        const u32 word = touched_w[f / 32], bit = 1u << f % 32;
        row = before_w[f / 32] - before_w[first / 32] + __popc(word & (bit - 1));
        return word & bit;
    }
};
