// decode: x̂ = b_dec + Σ_f a_f · W_dec[f], a gather of the rows of the active features.
//
//   pairs_bc [n, capacity] sorted by feature, count_b [n] · w_dec_fs [features, stride] f32 or bf16
//   first_s [stride]: b_dec, or zeros where another rank of the feature axis adds it
//   norm_f [features] = ‖W_dec[f]‖ · x_hat_bs [n, stride] f32 · l1_b [n] = Σ_f a_f ‖W_dec[f]‖, made here because the list is at hand
//
// A token whose list had no room is left out: the batch is refused, and its x̂ is not used. The token's own counter says so, not
// status.overflow, which lists of later tokens may set while this runs (kernels/src/cuda/ranks/slices.rs).
//
// Bytes: stride · (4 or 2) a pair, 4 · stride a token written. FLOP: 2 · stride a pair. Sums run in the order of the features.
//
// Plan: a block a token; a thread 4 neighbouring columns out of 512; the list goes through shared memory in parts of 128.
#include "columns.cuh"

template <class T>
static __device__ __forceinline__ void decode(const u64* pairs_bc, const u32* count_b, const T* w_dec_fs, const float* first_s,
                                              const float* norm_f, float* x_hat_bs, double* l1_b, u32 stride, u32 capacity) {
    __shared__ u64 part[COLUMN_THREADS];
    __shared__ double slots[COLUMN_THREADS / WARP];
    const u32 token = blockIdx.x, count = count_b[token];
    if (count > capacity) return;
    const u64* list = pairs_bc + (u64)token * capacity;
    double l1 = 0;
    for (u32 i = threadIdx.x; i < count; i += COLUMN_THREADS) l1 += __uint_as_float((u32)list[i]) * norm_f[list[i] >> 32];
    l1 = block_sum<COLUMN_THREADS>(l1, slots);
    if (threadIdx.x == 0) l1_b[token] = l1;
    for (u32 d0 = 0; d0 < stride; d0 += COLUMN_BLOCK) {
        const u32 d = d0 + threadIdx.x * 4;
        Columns sum = d < stride ? load_columns(first_s + d) : Columns{};
        for (u32 i0 = 0; i0 < count; i0 += COLUMN_THREADS) {
            __syncthreads();
            if (i0 + threadIdx.x < count) part[threadIdx.x] = list[i0 + threadIdx.x];
            __syncthreads();
            if (d >= stride) continue;
            const u32 here = min(COLUMN_THREADS, count - i0);
#pragma unroll 4
            for (u32 i = 0; i < here; ++i) {
                const u64 feature = part[i] >> 32;
                sum.add(__uint_as_float((u32)part[i]), load_columns(w_dec_fs + feature * stride + d));
            }
        }
        if (d < stride) store_columns(x_hat_bs + (u64)token * stride + d, sum);
    }
}

extern "C" __global__ void __launch_bounds__(128)
decode_f32(const u64* pairs_bc, const u32* count_b, const float* w_dec_fs, const float* first_s, const float* norm_f, float* x_hat_bs, double* l1_b,
            u32 stride, u32 capacity) {
    decode(pairs_bc, count_b, w_dec_fs, first_s, norm_f, x_hat_bs, l1_b, stride, capacity);
}

extern "C" __global__ void __launch_bounds__(128)
decode_bf16(const u64* pairs_bc, const u32* count_b, const bf16* w_dec_fs, const float* first_s, const float* norm_f, float* x_hat_bs, double* l1_b,
            u32 stride, u32 capacity) {
    decode(pairs_bc, count_b, w_dec_fs, first_s, norm_f, x_hat_bs, l1_b, stride, capacity);
}
