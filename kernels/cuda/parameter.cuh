// A weight matrix with its moments, as a GPU keeps it: [rows, stride], in the format of `train.precision` and `train.moments`.
//
//   weights  float, with a bf16 copy for the GEMMs where there is one · or bf16 alone, rounded stochastically
//   moments  float · bf16, rounded stochastically · 8 bits with a binary32 scale for each block of 128 columns of a row (the last may be shorter)
//
// Moments in 8 bits follow T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer: 8-bit optimizers via block-wise quantization, 2021: small
// blocks, so that one large value costs only its neighbours their precision, and codes that lie denser near 0. With A the
// largest magnitude of a block, which is its scale:
//
//   m = ± A (q / 127)², q in 0..127        v = A (q / 255)⁴, q in 0..255, and q ≥ 1 where v > 0
//
// An update is m / √v: √v reaches down to A / 255² while m ends at A / 127², and v never becomes 0 where m may not be: else
// a step of m / ε would follow. Powers instead of a table of codes: a product or two on the way in, a root or two on the way out.
// Both moments are rounded stochastically: v shrinks by 1/1000 a step, less than half of the spacing of either format, and would
// never shrink if it were rounded to nearest.
//
// Reading gives A for the largest value exactly, so what was read and is written again (kernels/src/cuda/array.rs) reads the same.
//
// Formats lie behind reading and writing, which lose nothing that was stored: checkpoints hold binary32 and know none of them.
#pragma once
#include "rounding.cuh"

// kernels/src/cuda/weights.rs has the same fields in the same order.
struct Parameter {
    void* value;
    void* first;
    void* second;
    // bf16 copy of the weights, or null.
    bf16* copy;
    // Scales of moments in 8 bits, or null: [rows, blocks].
    float* first_scale;
    float* second_scale;
};

// Columns with one scale: those that a warp holds.
static constexpr u32 SCALE_BLOCK = 4 * WARP;
// Blocks whose values all lie below are zeros: there codes would run into subnormals, and ε outweighs √v by far.
static constexpr float SMALLEST_SCALE = 0x1p-100f;

// Four columns of a row. A thread may stand behind the end of the row, to take part in what its warp does together.
struct Place {
    u64 at, block;
    u32 d;
    bool inside;

    __device__ __forceinline__ Place(u64 row, u32 d, u32 stride)
        : at(row * stride + d), block(row * ((stride + SCALE_BLOCK - 1) / SCALE_BLOCK) + d / SCALE_BLOCK), d(d), inside(d < stride) {}
};

struct Moments {
    Columns first, second;
};

static __device__ __forceinline__ void store_columns(bf16* p, const bf16 (&c)[4]) {
    *(uint2*)p = make_uint2((u32)c[1].bits << 16 | c[0].bits, (u32)c[3].bits << 16 | c[2].bits);
}

// Weights as a template's argument names them, and what is stored of `w`.
template <class W> struct WeightFormat;

template <> struct WeightFormat<float> {
    static __device__ __forceinline__ Columns store(const Parameter& to, const Place& place, const Columns& w, const Key&) {
        if (place.inside) {
            store_columns((float*)to.value + place.at, w);
            if (to.copy) store_columns(to.copy + place.at, w);
        }
        return w;
    }
};

template <> struct WeightFormat<bf16> {
    static __device__ __forceinline__ Columns store(const Parameter& to, const Place& place, const Columns& w, const Key& key) {
        const Random random = key.draw(place.d, ROUNDED_WEIGHTS);
        bf16 rounded[4];
        Columns stored;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rounded[i] = round_stochastically(w.v[i], random.low(i));
            stored.v[i] = from_bf16(rounded[i]);
        }
        if (place.inside) store_columns((bf16*)to.value + place.at, rounded);
        return stored;
    }
};

template <class W> static __device__ __forceinline__ Columns load_weights(const Parameter& of, const Place& place) {
    return place.inside ? load_columns((const W*)of.value + place.at) : Columns{};
}

// Moments as a template's argument names them: float, bf16, or u8 for 8 bits.
template <class M> struct MomentFormat;

template <> struct MomentFormat<float> {
    static __device__ __forceinline__ Moments load(const Parameter& of, const Place& place) {
        if (!place.inside) return {};
        return {load_columns((const float*)of.first + place.at), load_columns((const float*)of.second + place.at)};
    }

    static __device__ __forceinline__ void store(const Parameter& to, const Place& place, const Moments& moments, const Key&) {
        if (!place.inside) return;
        store_columns((float*)to.first + place.at, moments.first);
        store_columns((float*)to.second + place.at, moments.second);
    }
};

template <> struct MomentFormat<bf16> {
    static __device__ __forceinline__ Moments load(const Parameter& of, const Place& place) {
        if (!place.inside) return {};
        return {load_columns((const bf16*)of.first + place.at), load_columns((const bf16*)of.second + place.at)};
    }

    static __device__ __forceinline__ void store(const Parameter& to, const Place& place, const Moments& moments, const Key& key) {
        if (!place.inside) return;
        const Random random = key.draw(place.d, ROUNDED_MOMENTS);
        bf16 first[4], second[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            first[i] = round_stochastically(moments.first.v[i], random.high(i));
            second[i] = round_stochastically(moments.second.v[i], random.low(i));
        }
        store_columns((bf16*)to.first + place.at, first);
        store_columns((bf16*)to.second + place.at, second);
    }
};

// Codes 0..TOP for the shares 0..1 of a block's scale, and back.
struct FirstCode {
    static constexpr u32 TOP = 127;
    static __device__ __forceinline__ float share(u32 q) {
        const float t = (float)q * (1.0f / TOP);
        return t * t;
    }
    static __device__ __forceinline__ float root(float share) { return sqrtf(share); }
};

struct SecondCode {
    static constexpr u32 TOP = 255;
    static __device__ __forceinline__ float share(u32 q) {
        const float t = (float)q * (1.0f / TOP), t2 = t * t;
        return t2 * t2;
    }
    static __device__ __forceinline__ float root(float share) { return sqrtf(sqrtf(share)); }
};

// The code of a magnitude, rounded stochastically. What is not finite takes the last one, and its scale keeps it so.
template <class Code> static __device__ __forceinline__ u32 encode_moment(float magnitude, float scale, u32 random) {
    const float share = scale == 0 ? 0.0f : fminf(magnitude / scale, 1.0f);
    const u32 below = min((u32)((float)Code::TOP * Code::root(share)), Code::TOP - 1);
    const float low = Code::share(below), high = Code::share(below + 1);
    return below + ((float)random * 0x1p-16f * (high - low) < share - low);
}

// The largest magnitude of a warp's columns. Bits order magnitudes, with what is not finite above all others.
static __device__ __forceinline__ float scale_of(const Columns& c) {
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(c.v[i]) & 0x7fffffffu);
    for (int o = WARP / 2; o > 0; o /= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, o));
    const float scale = __uint_as_float(largest);
    return scale < SMALLEST_SCALE ? 0.0f : scale;
}

// All lanes of a warp store together.
template <> struct MomentFormat<u8> {
    static __device__ __forceinline__ Moments load(const Parameter& of, const Place& place) {
        Moments moments;
        if (!place.inside) return moments;
        const u32 first = *(const u32*)((const u8*)of.first + place.at), second = *(const u32*)((const u8*)of.second + place.at);
        const float first_scale = of.first_scale[place.block], second_scale = of.second_scale[place.block];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 q = first >> 8 * i & 0xff;
            const float m = first_scale * FirstCode::share(q & 0x7f);
            moments.first.v[i] = q & 0x80 ? -m : m;
            moments.second.v[i] = second_scale * SecondCode::share(second >> 8 * i & 0xff);
        }
        return moments;
    }

    static __device__ __forceinline__ void store(const Parameter& to, const Place& place, const Moments& moments, const Key& key) {
        const float first_scale = scale_of(moments.first), second_scale = scale_of(moments.second);
        // All lanes have read the scales that are written below: shuffles order no memory.
        __syncwarp();
        if (!place.inside) return;
        const Random random = key.draw(place.d, ROUNDED_MOMENTS);
        u32 first = 0, second = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float m = moments.first.v[i], v = moments.second.v[i];
            const u32 sign = __float_as_uint(m) >> 31 << 7;
            const u32 least = v > 0 && second_scale > 0;
            first |= (sign | encode_moment<FirstCode>(fabsf(m), first_scale, random.high(i))) << 8 * i;
            second |= max(encode_moment<SecondCode>(v, second_scale, random.low(i)), least) << 8 * i;
        }
        *(u32*)((u8*)to.first + place.at) = first;
        *(u32*)((u8*)to.second + place.at) = second;
        if (place.d % SCALE_BLOCK == 0) {
            to.first_scale[place.block] = first_scale;
            to.second_scale[place.block] = second_scale;
        }
    }
};
