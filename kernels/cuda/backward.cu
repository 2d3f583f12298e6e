// backward: the gradient of every feature that fired, as far as it must be known before the update: its norm, and ∂a.
//
//   runs of (token, a) by feature · g_bs, x_bs [n, stride] and w_dec_fs [features, stride] f32 or bf16 · norm_f [features]
//   gradient_p = ∂a · bias_f = ∂b_enc = Σ ∂a · activation_f = Σ a · norm2_f = ‖∂W_dec[f]‖² + ‖∂W_enc[f]‖² + ∂b_enc[f]²
//   sums_s [stride] = ∂b_dec · status.gradient_norm, status.ok
//
// Bytes: g and x rows of every pair, 2 · stride · (4 or 2) a pair, and W_dec once a touched row; g is read twice, the second
// time from a cache. FLOP: 8 · stride a pair. (Storing the gradient's rows instead of making them again in adam would cost
// 16 · stride bytes a touched row: more than 4 · stride · 2 a pair when a row has fewer than two pairs, as at 1M features.)
//
// Plan: a block a feature, 4 columns a thread. Dot products of four pairs at a time, one barrier for the four; then the sums
// in columns. Runs of more than 1,024 pairs are cut into chunks that other blocks sum; the parts are added in their order.
#include "gradient.cuh"
#include "status.cuh"

static constexpr u32 TOGETHER = 4;

// ∂a of the pairs [from, to) of a feature: `penalty` is (λ/B) ‖W_dec[f]‖. All threads see the results.
template <class T>
static __device__ __forceinline__ void activation_gradients(const Csc<T>& csc, const T* w_dec_s, float penalty, u32 from, u32 to) {
    __shared__ float slots[COLUMN_THREADS / WARP][TOGETHER];
    for (u32 p0 = from; p0 < to; p0 += TOGETHER) {
        float part[TOGETHER] = {};
        const T* g[TOGETHER];
#pragma unroll
        for (u32 j = 0; j < TOGETHER; ++j) g[j] = csc.g_bs + (u64)csc.token_p[min(p0 + j, to - 1)] * csc.stride;
        for (u32 d = threadIdx.x * 4; d < csc.stride; d += COLUMN_BLOCK) {
            const Columns w = load_columns(w_dec_s + d);
#pragma unroll
            for (u32 j = 0; j < TOGETHER; ++j) part[j] += w.dot(load_columns(g[j] + d));
        }
#pragma unroll
        for (u32 j = 0; j < TOGETHER; ++j) {
            part[j] = warp_sum(part[j]);
            if (lane_id() == 0) slots[warp_id()][j] = part[j];
        }
        __syncthreads();
        if (threadIdx.x < TOGETHER && p0 + threadIdx.x < to) {
            float sum = penalty;
            for (u32 w = 0; w < COLUMN_THREADS / WARP; ++w) sum += slots[w][threadIdx.x];
            csc.gradient_p[p0 + threadIdx.x] = sum;
        }
        __syncthreads();
    }
}

// The chunks of long runs. Blocks take one after the other.
template <class T>
static __device__ __forceinline__ void backward_chunks(const Csc<T>& csc, const T* w_dec_fs, const float* norm_f, const u32* feature_c,
                                                       const Status* status, float lambda_over_b, u32 features) {
    if (status->overflow) return;
    const u32 chunks = csc.chunk_f[features];
    for (u32 c = blockIdx.x; c < chunks; c += gridDim.x) {
        const u32 f = feature_c[c];
        const u32 from = csc.run_f[f] + (c - csc.chunk_f[f]) * CHUNK, to = min(from + CHUNK, csc.run_f[f + 1]);
        activation_gradients(csc, w_dec_fs + (u64)f * csc.stride, lambda_over_b * norm_f[f], from, to);
        for (u32 d = threadIdx.x * 4; d < csc.stride; d += COLUMN_BLOCK) {
            const GradientColumns sum = sum_pairs(csc, from, to, d);
            store_columns(csc.dec_cs + (u64)c * csc.stride + d, sum.dec);
            store_columns(csc.enc_cs + (u64)c * csc.stride + d, sum.enc);
        }
    }
}

template <class T>
static __device__ __forceinline__ void backward(const Csc<T>& csc, const T* w_dec_fs, const float* norm_f, float* bias_f,
                                                float* activation_f, float* norm2_f, const Status* status, float lambda_over_b) {
    __shared__ float slots[3][COLUMN_THREADS / WARP];
    if (status->overflow) return;
    const u32 f = blockIdx.x, from = csc.run_f[f], to = csc.run_f[f + 1];
    if (from == to) {
        if (threadIdx.x == 0) bias_f[f] = activation_f[f] = norm2_f[f] = 0;
        return;
    }
    const float norm = norm_f[f], inverse = norm > 0 ? 1.0f / norm : 0.0f;
    const T* w_dec_s = w_dec_fs + (u64)f * csc.stride;
    if (to - from <= CHUNK) activation_gradients(csc, w_dec_s, lambda_over_b * norm, from, to);
    float bias = 0, activation = 0;
    for (u32 p = from + threadIdx.x; p < to; p += COLUMN_THREADS) {
        bias += csc.gradient_p[p];
        activation += csc.activation_p[p];
    }
    bias = block_sum<COLUMN_THREADS>(bias, slots[0]);
    activation = block_sum<COLUMN_THREADS>(activation, slots[1]);
    const float pull = lambda_over_b * activation * inverse;
    float norm2 = 0;
    for (u32 d = threadIdx.x * 4; d < csc.stride; d += COLUMN_BLOCK) {
        GradientColumns gradient = sum_run(csc, f, d);
        gradient.dec.add(pull, load_columns(w_dec_s + d));
        norm2 += gradient.dec.dot(gradient.dec) + gradient.enc.dot(gradient.enc);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots[2]);
    if (threadIdx.x == 0) {
        bias_f[f] = bias;
        activation_f[f] = activation;
        norm2_f[f] = norm2 + bias * bias;
    }
}

extern "C" __global__ void __launch_bounds__(128, 4)
backward_chunks_f32(Csc<float> csc, const float* w_dec_fs, const float* norm_f, const u32* feature_c, const Status* status, float lambda_over_b, u32 features) {
    backward_chunks(csc, w_dec_fs, norm_f, feature_c, status, lambda_over_b, features);
}

extern "C" __global__ void __launch_bounds__(128, 8)
backward_chunks_bf16(Csc<bf16> csc, const bf16* w_dec_fs, const float* norm_f, const u32* feature_c, const Status* status, float lambda_over_b, u32 features) {
    backward_chunks(csc, w_dec_fs, norm_f, feature_c, status, lambda_over_b, features);
}

extern "C" __global__ void __launch_bounds__(128, 4)
backward_f32(Csc<float> csc, const float* w_dec_fs, const float* norm_f, float* bias_f, float* activation_f, float* norm2_f, const Status* status,
             float lambda_over_b) {
    backward(csc, w_dec_fs, norm_f, bias_f, activation_f, norm2_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
backward_bf16(Csc<bf16> csc, const bf16* w_dec_fs, const float* norm_f, float* bias_f, float* activation_f, float* norm2_f, const Status* status,
              float lambda_over_b) {
    backward(csc, w_dec_fs, norm_f, bias_f, activation_f, norm2_f, status, lambda_over_b);
}

// Sums of the columns of a matrix [n, stride]; of ∂b_dec = Σ_t g_t, and of a tile's ∂b_enc. A block for 32 columns: each warp
// takes every 8th row, and the warps' sums are added in their order.
template <class T> static __device__ __forceinline__ void sum_columns(const T* matrix, float* sums, u32 n, u32 columns, u32 stride) {
    __shared__ double parts[8][WARP];
    const u32 d = blockIdx.x * WARP + lane_id();
    double sum = 0;
    if (d < columns)
        for (u32 row = warp_id(); row < n; row += 8) sum += load(matrix + (u64)row * stride + d);
    parts[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() > 0 || d >= columns) return;
    for (u32 w = 1; w < 8; ++w) sum += parts[w][lane_id()];
    sums[d] = (float)sum;
}

extern "C" __global__ void __launch_bounds__(256)
sum_columns_f32(const float* matrix, float* sums, u32 n, u32 columns, u32 stride) {
    sum_columns(matrix, sums, n, columns, stride);
}

extern "C" __global__ void __launch_bounds__(256)
sum_columns_bf16(const bf16* matrix, float* sums, u32 n, u32 columns, u32 stride) {
    sum_columns(matrix, sums, n, columns, stride);
}

// The norm over all parameters, and whether the update may be made. One block.
extern "C" __global__ void __launch_bounds__(1024)
finish_gradient(const float* norm2_f, const float* b_dec_gradient_s, Status* status, u32 features, u32 stride) {
    __shared__ double slots[1024 / WARP];
    if (status->overflow) return;
    double sum = 0;
    for (u32 f = threadIdx.x; f < features; f += 1024) sum += norm2_f[f];
    for (u32 d = threadIdx.x; d < stride; d += 1024) sum += (double)b_dec_gradient_s[d] * b_dec_gradient_s[d];
    sum = block_sum<1024>(sum, slots);
    if (threadIdx.x == 0) {
        status->gradient_norm = sqrt(sum);
        status->ok = status->bad_rows == 0 && isfinite(sum);
    }
}
