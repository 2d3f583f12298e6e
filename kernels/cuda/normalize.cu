// normalize: x = scale · row, stored rows to binary32, to a bf16 copy for the tensor cores, and what the sums need of them.
//
//   rows [n, width] f32, f16 or bf16, dense · x_bs, copy_bs [n, stride], zeros from width on; copy_bs may be null
//   norm2_b [n] = ‖x‖² · bad_b [n] = 1 where a value is not finite · bad_rows counts those
//
// Bytes a row: width · (2 or 4) read, stride · (4 + 2) written. FLOP: 3 a value.
//
// Plan: a block a row; each thread every 128th value; one sum and one vote over the block.
#include "device.cuh"

static constexpr int THREADS = 128;

template <class Stored>
static __device__ __forceinline__ void normalize(const Stored* rows, float* x_bs, bf16* copy_bs, double* norm2_b, u32* bad_b,
                                                 u32* bad_rows, u32 width, u32 stride, float scale) {
    __shared__ double slots[THREADS / WARP];
    __shared__ u32 bad_slots[THREADS / WARP];
    const u32 row = blockIdx.x;
    const Stored* from = rows + (u64)row * width;
    double norm2 = 0;
    u32 bad = 0;
    for (u32 d = threadIdx.x; d < stride; d += THREADS) {
        const float x = d < width ? load(from + d) * scale : 0.0f;
        bad += !isfinite(x);
        norm2 += (double)x * x;
        x_bs[(u64)row * stride + d] = x;
        if (copy_bs) store(copy_bs + (u64)row * stride + d, x);
    }
    norm2 = block_sum<THREADS>(norm2, slots);
    bad = block_sum<THREADS>(bad, bad_slots);
    if (threadIdx.x == 0) {
        norm2_b[row] = norm2;
        bad_b[row] = bad > 0;
        if (bad > 0) atomicAdd(bad_rows, 1u);
    }
}

extern "C" __global__ void __launch_bounds__(128)
normalize_f32(const float* rows, float* x_bs, bf16* copy_bs, double* norm2_b, u32* bad_b, u32* bad_rows, u32 width, u32 stride, float scale) {
    normalize(rows, x_bs, copy_bs, norm2_b, bad_b, bad_rows, width, stride, scale);
}

extern "C" __global__ void __launch_bounds__(128)
normalize_f16(const f16* rows, float* x_bs, bf16* copy_bs, double* norm2_b, u32* bad_b, u32* bad_rows, u32 width, u32 stride, float scale) {
    normalize(rows, x_bs, copy_bs, norm2_b, bad_b, bad_rows, width, stride, scale);
}

extern "C" __global__ void __launch_bounds__(128)
normalize_bf16(const bf16* rows, float* x_bs, bf16* copy_bs, double* norm2_b, u32* bad_b, u32* bad_rows, u32 width, u32 stride, float scale) {
    normalize(rows, x_bs, copy_bs, norm2_b, bad_b, bad_rows, width, stride, scale);
}
