// exchange: what the ranks of a mesh make of what they have sent each other; NCCL only moves bytes.
//
//   sums over ranks: ((v₀ + v₁) + v₂) + …, in the order of the ranks, whatever arrived first
//
//   own [len] of this rank, parts [ranks, pitch] of the others; what stands at its own place there is not looked at
//   statuses_r [ranks]: every rank's status after its residual, or after its gradient
//
// Bytes: 4 · (ranks + 1) a summed value. FLOP: 1 a value and rank.
//
// Plan: a thread a value; one block for statuses, since there are few.
//
// Rejected: ncclAllReduce, whose order of additions is NCCL's choice, so that bits would depend on its version and the wires.
#include "status.cuh"

template <class T>
static __device__ __forceinline__ void sum_parts(const T* own, const T* parts_rp, T* sum, u32 me, u32 ranks, u32 pitch, u32 len) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= len) return;
    const auto part = [&](u32 rank) { return rank == me ? own[i] : parts_rp[(u64)rank * pitch + i]; };
    T all = part(0);
    for (u32 rank = 1; rank < ranks; ++rank) all += part(rank);
    sum[i] = all;
}

// `sum` may be `own`.
extern "C" __global__ void __launch_bounds__(256)
sum_parts_f32(const float* own, const float* parts_rp, float* sum, u32 me, u32 ranks, u32 pitch, u32 len) {
    sum_parts(own, parts_rp, sum, me, ranks, pitch, len);
}

extern "C" __global__ void __launch_bounds__(256)
sum_parts_u32(const u32* own, const u32* parts_rp, u32* sum, u32 me, u32 ranks, u32 pitch, u32 len) {
    sum_parts(own, parts_rp, sum, me, ranks, pitch, len);
}

// The sums of the report over all ranks, and whether one of them has to refuse the batch. Ranks of the feature axis see the same
// rows: the first of each speaks for them. One thread.
extern "C" __global__ void __launch_bounds__(32)
combine_sums(const Status* statuses_r, Status* status, u32 me, u32 ranks, u32 feature_ranks) {
    if (threadIdx.x > 0) return;
    const Status own = *status;
    Status all = {};
    all.held = own.held;
    for (u32 rank = 0; rank < ranks; ++rank) {
        const Status of = rank == me ? own : statuses_r[rank];
        all.overflow |= of.overflow;
        all.active += of.active;
        all.l1 += of.l1;
        if (rank % feature_ranks > 0) continue;
        all.bad_rows += of.bad_rows;
        all.squared_error += of.squared_error;
    }
    *status = all;
}

// This rank's part of the squared norm: that of the features that it owns. It stands in status.gradient_norm until
// `combine_norms`. One block.
extern "C" __global__ void __launch_bounds__(1024)
sum_norms(const float* norm2_f, Status* status, u32 features) {
    __shared__ double slots[1024 / WARP];
    if (status->overflow) return;
    double sum = 0;
    for (u32 f = threadIdx.x; f < features; f += 1024) sum += norm2_f[f];
    sum = block_sum<1024>(sum, slots);
    if (threadIdx.x == 0) status->gradient_norm = sum;
}

// The norm over all parameters, and whether the update may be made: as finish_gradient in backward.cu. One block.
extern "C" __global__ void __launch_bounds__(256)
combine_norms(const Status* statuses_r, const float* b_dec_gradient_s, Status* status, u32 me, u32 ranks, u32 stride) {
    __shared__ double slots[256 / WARP];
    if (status->overflow) return;
    double b_dec = 0;
    for (u32 d = threadIdx.x; d < stride; d += 256) b_dec += (double)b_dec_gradient_s[d] * b_dec_gradient_s[d];
    b_dec = block_sum<256>(b_dec, slots);
    if (threadIdx.x > 0) return;
    double sum = 0;
    for (u32 rank = 0; rank < ranks; ++rank) sum += rank == me ? status->gradient_norm : statuses_r[rank].gradient_norm;
    sum += b_dec;
    status->gradient_norm = sqrt(sum);
    status->ok = status->bad_rows == 0 && isfinite(sum);
}
