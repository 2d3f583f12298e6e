// count: adds the tokens [from, to) of a batch to sums that run over many batches, unless the batch was refused.
//
//   norm2_b, error_b, l1_b [n] f64 · x_bs [n, stride] f32 · runs by feature, or firings already counted by the dense path
//   Tally: rows, squared_error, squared_norm, l1, active · x_s [stride] f64 · fired_f [features]
//
// Bytes: 4 · stride a token read. FLOP: 1 a value.
//
// Plan: one block over the tokens, a block for 32 columns as in sum_columns, a thread a feature; all in fixed orders.
#include "status.cuh"

// kernels/src/cuda/ops/count.rs has the same fields in the same order.
struct Tally {
    u64 rows, active;
    double squared_error, squared_norm, l1;
};

extern "C" __global__ void __launch_bounds__(256)
count_tokens(const double* norm2_b, const double* error_b, const double* l1_b, Tally* tally, const Status* status, u32 from, u32 to, u32 with_gradient) {
    __shared__ double slots[3][256 / WARP];
    if (refused(status, with_gradient)) return;
    double norm2 = 0, error = 0, l1 = 0;
    for (u32 token = from + threadIdx.x; token < to; token += 256) {
        norm2 += norm2_b[token];
        error += error_b[token];
        l1 += l1_b[token];
    }
    norm2 = block_sum<256>(norm2, slots[0]);
    error = block_sum<256>(error, slots[1]);
    l1 = block_sum<256>(l1, slots[2]);
    if (threadIdx.x == 0) {
        tally->rows += to - from;
        tally->squared_norm += norm2;
        tally->squared_error += error;
        tally->l1 += l1;
    }
}

extern "C" __global__ void __launch_bounds__(256)
count_columns(const float* x_bs, double* x_s, const Status* status, u32 from, u32 to, u32 stride, u32 with_gradient) {
    __shared__ double parts[8][WARP];
    if (refused(status, with_gradient)) return;
    const u32 d = blockIdx.x * WARP + lane_id();
    double sum = 0;
    if (d < stride)
        for (u32 token = from + warp_id(); token < to; token += 8) sum += x_bs[(u64)token * stride + d];
    parts[warp_id()][lane_id()] = sum;
    __syncthreads();
    if (warp_id() > 0 || d >= stride) return;
    for (u32 w = 1; w < 8; ++w) sum += parts[w][lane_id()];
    x_s[d] += sum;
}

// Firings of a feature: all of the batch from count_f when `token_p` is null, else those of its run that lie in [from, to).
extern "C" __global__ void __launch_bounds__(256)
count_features(const u32* count_f, const u32* run_f, const u32* token_p, u64* fired_f, Tally* tally, const Status* status, u32 from, u32 to, u32 features,
               u32 with_gradient) {
    __shared__ u64 slots[256 / WARP];
    if (refused(status, with_gradient)) return;
    const u32 f = blockIdx.x * 256 + threadIdx.x;
    u64 fired = 0;
    if (f < features) {
        if (!token_p) fired = count_f[f];
        else
            for (u32 p = run_f[f]; p < run_f[f + 1]; ++p) fired += token_p[p] >= from && token_p[p] < to;
        if (fired > 0) fired_f[f] += fired;
    }
    fired = block_sum<256>(fired, slots);
    if (threadIdx.x == 0 && fired > 0) atomicAdd(&tally->active, fired);
}
