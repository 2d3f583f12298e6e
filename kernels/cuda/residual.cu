// residual: g = 2 (x̂ − x) / of, and the sums of the report.
//
//   of: rows of the batch over all ranks, of which n are here
//   x_bs, x_hat_bs [n, stride] f32 · g_bs [n, stride] f32 or bf16 · error_b [n] = ‖x − x̂‖², l1_b [n] from decode
//   status.squared_error, l1: their sums over the tokens, in one fixed order · status.active: the sum of count_f
//
// Bytes a token: 8 · stride read, (4 or 2) · stride written. FLOP: 5 a value.
//
// Plan: a block a token, 4 columns a thread; then one block over the tokens.
#include "columns.cuh"
#include "status.cuh"

template <class T>
static __device__ __forceinline__ void residual(const float* x_bs, const float* x_hat_bs, T* g_bs, double* error_b, const Status* status, u32 of, u32 stride) {
    __shared__ double slots[COLUMN_THREADS / WARP];
    if (status->overflow) return;
    const u32 token = blockIdx.x;
    const float factor = 2.0f / (float)of;
    double error = 0;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const u64 at = (u64)token * stride + d;
        Columns g = load_columns(x_hat_bs + at);
        g.add(-1.0f, load_columns(x_bs + at));
        error += g.dot(g);
#pragma unroll
        for (int i = 0; i < 4; ++i) g.v[i] *= factor;
        store_columns(g_bs + at, g);
    }
    error = block_sum<COLUMN_THREADS>(error, slots);
    if (threadIdx.x == 0) error_b[token] = error;
}

extern "C" __global__ void __launch_bounds__(128)
residual_f32(const float* x_bs, const float* x_hat_bs, float* g_bs, double* error_b, const Status* status, u32 of, u32 stride) {
    residual(x_bs, x_hat_bs, g_bs, error_b, status, of, stride);
}

extern "C" __global__ void __launch_bounds__(128)
residual_bf16(const float* x_bs, const float* x_hat_bs, bf16* g_bs, double* error_b, const Status* status, u32 of, u32 stride) {
    residual(x_bs, x_hat_bs, g_bs, error_b, status, of, stride);
}

// The sums over the tokens. One block.
extern "C" __global__ void __launch_bounds__(256)
sum_tokens(const double* error_b, const double* l1_b, Status* status, u32 n) {
    __shared__ double slots[2][256 / WARP];
    if (status->overflow) return;
    double error = 0, l1 = 0;
    for (u32 token = threadIdx.x; token < n; token += 256) {
        error += error_b[token];
        l1 += l1_b[token];
    }
    error = block_sum<256>(error, slots[0]);
    l1 = block_sum<256>(l1, slots[1]);
    if (threadIdx.x == 0) {
        status->squared_error = error;
        status->l1 = l1;
    }
}

// Adds the active pairs of all features to status.active.
extern "C" __global__ void __launch_bounds__(256)
count_active(const u32* count_f, Status* status, u32 features) {
    __shared__ u64 slots[256 / WARP];
    u64 active = 0;
    for (u32 f = blockIdx.x * 256 + threadIdx.x; f < features; f += gridDim.x * 256) active += count_f[f];
    active = block_sum<256>(active, slots);
    if (threadIdx.x == 0 && active > 0) atomicAdd(&status->active, active);
}
