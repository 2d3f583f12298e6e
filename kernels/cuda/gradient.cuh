// The gradient of a feature's rows from its run of pairs, made in columns: backward sums its squares, adam makes it again and
// uses it, so that no gradient row is ever stored.
//
//   ∂a_t      = g_t · W_dec[f] + (λ/B) ‖W_dec[f]‖
//   ∂W_dec[f] = Σ_t a_t g_t + (λ/B) (Σ_t a_t) W_dec[f] / ‖W_dec[f]‖        ∂W_enc[f] = Σ_t ∂a_t x_t        ∂b_enc[f] = Σ_t ∂a_t
//
// **A GPU makes each gradient row twice and stores none.** Backward needs the gradient only for its norm, which clipping must know before
// any update. At a million features a touched row has fewer than two active pairs in a batch: making the row again from its pairs moves
// `4·D` bytes a pair in bf16, storing and reading it `16·D` bytes a row, and needs `8·F·D` bytes of memory besides.
#pragma once
#include "columns.cuh"

// Pairs of a chunk of a run that one block walks over; longer runs are cut (LONG in transpose.cu).
static constexpr u32 CHUNK = 1024;

// The active pairs as transpose.cu leaves them, in CSC: a column, which is called a run, for each feature, with its tokens in order; and the
// rows that they mean.
template <class T> struct Csc {
    const u32* run_f;
    const u32* token_p;
    const float* activation_p;
    // ∂a, made by backward.
    float* gradient_p;
    // Chunks of long runs: where a feature's begin, and the sums over their pairs, [chunks, stride].
    const u32* chunk_f;
    float* dec_cs;
    float* enc_cs;
    const T* g_bs;
    const T* x_bs;
    u32 stride;
};

// Sums over pairs in four columns.
struct GradientColumns {
    Columns dec, enc;
};

// Σ a g and Σ ∂a x over the pairs [from, to), in their order.
template <class T> __device__ __forceinline__ GradientColumns sum_pairs(const Csc<T>& csc, u32 from, u32 to, u32 d) {
    GradientColumns sum;
#pragma unroll 2
    for (u32 p = from; p < to; ++p) {
        const u64 row = (u64)csc.token_p[p] * csc.stride + d;
        sum.dec.add(csc.activation_p[p], load_columns(csc.g_bs + row));
        sum.enc.add(csc.gradient_p[p], load_columns(csc.x_bs + row));
    }
    return sum;
}

// The same over all pairs of feature f: those of a long run are summed chunk by chunk.
template <class T> __device__ __forceinline__ GradientColumns sum_run(const Csc<T>& csc, u32 f, u32 d) {
    const u32 from = csc.run_f[f], to = csc.run_f[f + 1];
    if (to - from <= CHUNK) return sum_pairs(csc, from, to, d);
    GradientColumns sum;
    for (u32 c = csc.chunk_f[f]; c < csc.chunk_f[f + 1]; ++c) {
        sum.dec.add(1.0f, load_columns(csc.dec_cs + (u64)c * csc.stride + d));
        sum.enc.add(1.0f, load_columns(csc.enc_cs + (u64)c * csc.stride + d));
    }
    return sum;
}
