// naive: the operations of a step as one would write them first, for benchmarks to hold the others against. No run uses them.
//
//   naive_encode    a_tf = ReLU(x · W_encᵀ + b_enc), all of it      naive_decode    x̂ = b_dec + Σ_f a_f · W_dec[f]
//   naive_backward  ∂W_dec, ∂W_enc, ∂b_enc as matrices like the weights, from what each pair adds to them
//   naive_adam      a tensor at a time, every value, its gradient read from memory; naive_copy and naive_norms follow
//
//   x_bs, g_bs, W_enc, W_dec bf16 · lists as encode.cu leaves them · gradients, moments and masters f32
//
// Bytes: encode 4 · F a token written; backward 16 · stride a pair, read and written by atomics; adam 28 a value, and 4 for the copy.
// Plan: a thread an output for encode, a block a token for decode and backward, a thread a value for Adam.
#include "activation.cuh"
#include "parameter.cuh"

static constexpr u32 THREADS = 256;

// A block for 256 features of one token, blockIdx.y.
extern "C" __global__ void __launch_bounds__(256)
naive_encode(const bf16* x_bs, const bf16* w_enc_fs, const float* b_enc_f, float* a_tf, u32 features, u32 stride) {
    const u32 f = blockIdx.x * THREADS + threadIdx.x;
    if (f >= features) return;
    const bf16 *x = x_bs + (u64)blockIdx.y * stride, *w = w_enc_fs + (u64)f * stride;
    float sum = b_enc_f[f];
    for (u32 d = 0; d < stride; ++d) sum = fmaf(load(x + d), load(w + d), sum);
    a_tf[(u64)blockIdx.y * features + f] = activate(sum);
}

extern "C" __global__ void __launch_bounds__(256)
naive_decode(const u64* pairs_bc, const u32* count_b, const bf16* w_dec_fs, const float* b_dec_s, float* x_hat_bs, u32 stride, u32 capacity) {
    const u64* list = pairs_bc + (u64)blockIdx.x * capacity;
    const u32 count = count_b[blockIdx.x];
    for (u32 d = threadIdx.x; d < stride; d += THREADS) {
        float sum = b_dec_s[d];
        for (u32 i = 0; i < count; ++i) sum = fmaf(__uint_as_float((u32)list[i]), load(w_dec_fs + (list[i] >> 32) * stride + d), sum);
        x_hat_bs[(u64)blockIdx.x * stride + d] = sum;
    }
}

// Gradients are 0 before. The penalty's share of ∂W_dec is λ/B · a · W_dec[f] / ‖W_dec[f]‖ a pair.
extern "C" __global__ void __launch_bounds__(256)
naive_backward(const u64* pairs_bc, const u32* count_b, const bf16* w_dec_fs, const float* norm_f, const bf16* g_bs, const bf16* x_bs, float* dec_fs,
               float* enc_fs, float* bias_f, u32 stride, u32 capacity, float lambda_over_b) {
    // Two, in turn: one barrier lies between two uses of the same.
    __shared__ float slots[2][THREADS / WARP];
    const u64* list = pairs_bc + (u64)blockIdx.x * capacity;
    const bf16 *g = g_bs + (u64)blockIdx.x * stride, *x = x_bs + (u64)blockIdx.x * stride;
    const u32 count = count_b[blockIdx.x];
    for (u32 i = 0; i < count; ++i) {
        const u64 f = list[i] >> 32, row = f * stride;
        const float a = __uint_as_float((u32)list[i]), norm = norm_f[f], pull = norm > 0 ? lambda_over_b / norm : 0.0f;
        float gradient = 0;
        for (u32 d = threadIdx.x; d < stride; d += THREADS) gradient = fmaf(load(g + d), load(w_dec_fs + row + d), gradient);
        gradient = block_sum<THREADS>(gradient, slots[i % 2]) + lambda_over_b * norm;
        for (u32 d = threadIdx.x; d < stride; d += THREADS) {
            atomicAdd(&dec_fs[row + d], a * fmaf(pull, load(w_dec_fs + row + d), load(g + d)));
            atomicAdd(&enc_fs[row + d], gradient * load(x + d));
        }
        if (threadIdx.x == 0) atomicAdd(&bias_f[f], gradient);
    }
}

// Adds Σ v² to norm2.
extern "C" __global__ void __launch_bounds__(256)
naive_norm2(const float* values, double* norm2, u64 len) {
    __shared__ double slots[THREADS / WARP];
    double sum = 0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < len; i += (u64)gridDim.x * THREADS) sum += (double)values[i] * values[i];
    sum = block_sum<THREADS>(sum, slots);
    if (threadIdx.x == 0) atomicAdd(norm2, sum);
}

// A thread a value, in as many rounds as the grid needs. `factor` is lr / c₁ and `root` 1 / √c₂.
extern "C" __global__ void __launch_bounds__(256)
naive_adam(Parameter to, const float* gradient, const double* norm2, u64 len, float clip, float factor, float root) {
    const float scale = (float)fmin(1.0, clip / (sqrt(*norm2) + 1e-6));
    float *value = (float*)to.value, *first = (float*)to.first, *second = (float*)to.second;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < len; i += (u64)gridDim.x * THREADS) {
        const float g = gradient[i] * scale;
        first[i] = fmaf(g - first[i], 0.1f, first[i]);
        second[i] = fmaf(g * 0.001f, g, second[i] * 0.999f);
        value[i] = fmaf(-factor, first[i] / fmaf(sqrtf(second[i]), root, 1e-8f), value[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
naive_copy(Parameter of, u64 len) {
    const float* value = (const float*)of.value;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < len; i += (u64)gridDim.x * THREADS) of.copy[i] = to_bf16(value[i]);
}

// norm_f = ‖W_dec[f]‖. A block a feature.
extern "C" __global__ void __launch_bounds__(256)
naive_norms(Parameter w_dec, float* norm_f, u32 stride) {
    __shared__ float slots[THREADS / WARP];
    const float* row = (const float*)w_dec.value + (u64)blockIdx.x * stride;
    float sum = 0;
    for (u32 d = threadIdx.x; d < stride; d += THREADS) sum = fmaf(row[d], row[d], sum);
    sum = block_sum<THREADS>(sum, slots);
    if (threadIdx.x == 0) norm_f[blockIdx.x] = sqrtf(sum);
}
