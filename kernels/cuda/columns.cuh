// Four neighbouring values of a row, as one thread holds them: 16 bytes of binary32, 8 of bf16. Rows begin at multiples of 8
// values, so that every access is aligned.
#pragma once
#include "device.cuh"

// Threads of a kernel that walks over rows, and the columns that they hold together.
static constexpr u32 COLUMN_THREADS = 128, COLUMN_BLOCK = 4 * COLUMN_THREADS;

struct Columns {
    float v[4] = {0, 0, 0, 0};

    // += a · other
    __device__ __forceinline__ void add(float a, const Columns& other) {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = fmaf(a, other.v[i], v[i]);
    }

    __device__ __forceinline__ float dot(const Columns& other) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = fmaf(v[i], other.v[i], sum);
        return sum;
    }
};

__device__ __forceinline__ Columns load_columns(const float* p) {
    const float4 q = *(const float4*)p;
    Columns c;
    c.v[0] = q.x, c.v[1] = q.y, c.v[2] = q.z, c.v[3] = q.w;
    return c;
}

__device__ __forceinline__ Columns load_columns(const bf16* p) {
    const uint2 q = *(const uint2*)p;
    Columns c;
    c.v[0] = __uint_as_float(q.x << 16), c.v[1] = __uint_as_float(q.x & 0xffff0000u);
    c.v[2] = __uint_as_float(q.y << 16), c.v[3] = __uint_as_float(q.y & 0xffff0000u);
    return c;
}

__device__ __forceinline__ void store_columns(float* p, const Columns& c) { *(float4*)p = make_float4(c.v[0], c.v[1], c.v[2], c.v[3]); }

__device__ __forceinline__ void store_columns(bf16* p, const Columns& c) {
    *(uint2*)p = make_uint2((u32)to_bf16(c.v[1]).bits << 16 | to_bf16(c.v[0]).bits, (u32)to_bf16(c.v[3]).bits << 16 | to_bf16(c.v[2]).bits);
}
