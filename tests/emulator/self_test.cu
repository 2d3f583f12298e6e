// Kernels that use every primitive of the emulator in the smallest way that can go wrong. self_test.cpp runs them and
// knows what must come out; the controls of tests/tests/emulator.rs plant their bugs here.
#include "device.cuh"

static constexpr u32 ALL = ALL_LANES;

// out [threads, 8]: what each lane sees of votes on "is lane % 3 == 0".
extern "C" __global__ void __launch_bounds__(64)
votes(u32* out) {
    const u32 lane = lane_id();
    const int p = lane % 3 == 0;
    u32* mine = out + threadIdx.x * 8;
    mine[0] = __ballot_sync(ALL, p);
    mine[1] = __any_sync(ALL, p);
    mine[2] = __all_sync(ALL, p);
    mine[3] = __reduce_add_sync(ALL, lane);
    mine[4] = __reduce_min_sync(ALL, lane + 5);
    mine[5] = __reduce_max_sync(ALL, lane + 5);
    mine[6] = __match_any_sync(ALL, lane % 5);
    // Half a warp by itself, the other half by itself.
    const u32 half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    mine[7] = __ballot_sync(half, p);
    __syncwarp();
}

// out [32, 6]: shuffles of lane · 10.
extern "C" __global__ void __launch_bounds__(32)
shuffles(double* out) {
    const u32 lane = lane_id();
    const int v = (int)lane * 10;
    double* mine = out + lane * 6;
    mine[0] = __shfl_sync(ALL, v, 7);
    mine[1] = __shfl_xor_sync(ALL, (float)v, 5);
    mine[2] = __shfl_up_sync(ALL, (double)v, 3);
    mine[3] = (double)__shfl_down_sync(ALL, (u64)v, 4);
    mine[4] = __shfl_sync(ALL, v, 3, 8);
    mine[5] = __shfl_down_sync(ALL, v, 2, 4);
}

// sums [rows] of in [rows, 128], all rows by one block: the slots are used again and again.
extern "C" __global__ void __launch_bounds__(128)
row_sums(const float* in, float* sums, u32 rows) {
    __shared__ float slots[128 / WARP];
    for (u32 row = 0; row < rows; ++row) {
        const float sum = block_sum<128>(in[row * 128 + threadIdx.x], slots);
        if (threadIdx.x == 0) sums[row] = sum;
        __syncthreads();
    }
}

// out = each block's part of `in` [blocks, 128] in the opposite order, moved by one, through static shared memory.
extern "C" __global__ void __launch_bounds__(128)
reverse(const u32* in, u32* out) {
    __shared__ u32 part[128];
    __shared__ u32 carried;
    if (threadIdx.x == 0) carried = 0;
    part[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 127) carried += part[0];
    __syncthreads();
    const u32 from = 127 - threadIdx.x;
    out[blockIdx.x * 128 + threadIdx.x] = from == 0 ? carried : part[from];
}

// Inclusive sums of `in` [n] of one block, in dynamic shared memory of n values.
extern "C" __global__ void __launch_bounds__(256)
scan(const u32* in, u32* out, u32 n) {
    DYNAMIC_SHARED(u32, values);
    const u32 i = threadIdx.x;
    // Threads that have nothing to do leave: barriers count those that are left.
    if (i >= n) return;
    values[i] = in[i];
    __syncthreads();
    for (u32 step = 1; step < n; step *= 2) {
        const u32 other = i >= step ? values[i - step] : 0;
        __syncthreads();
        values[i] += other;
        __syncthreads();
    }
    out[i] = values[i];
}

struct Totals {
    u64 sum;
    double squares;
    float floats;
    u32 low, high, bits, swaps;
};

// How often each of 16 values comes in `in` [n], and totals over all of it, by atomics.
extern "C" __global__ void __launch_bounds__(64)
histogram(const u32* in, u32* count, Totals* totals, u32 n) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const u32 v = in[i];
        atomicAdd(&count[v % 16], 1u);
        atomicAdd(&totals->sum, (u64)v);
        atomicAdd(&totals->squares, (double)v * v);
        atomicAdd(&totals->floats, 1.0f);
        atomicMin(&totals->low, v);
        atomicMax(&totals->high, v);
        atomicOr(&totals->bits, v);
        u32 seen = 0, taken;
        do {
            taken = seen;
            seen = atomicCAS(&totals->swaps, taken, taken + 1);
        } while (seen != taken);
    }
}

// A lock that threads of all warps take in turn; count is not atomic.
extern "C" __global__ void __launch_bounds__(96)
locked(u32* lock, u32* count) {
    while (atomicExch(lock, 1u) != 0) {
    }
    __threadfence();
    *count += 1;
    __threadfence();
    atomicExch(lock, 0u);
}

// Σ in [blocks, 64]: each block its part, the last one to finish the whole.
extern "C" __global__ void __launch_bounds__(64)
last_block(const u32* in, u32* parts, u32* finished, u32* sum) {
    __shared__ u32 slots[2];
    __shared__ u32 is_last;
    const u32 part = block_sum<64>(in[blockIdx.x * 64 + threadIdx.x], slots);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = part;
        __threadfence();
        is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 0) {
        u32 total = 0;
        for (u32 b = 0; b < gridDim.x; ++b) total += parts[b];
        *sum = total;
    }
}

// out [3]: whether any, whether all, and how many of the threads have a bit of `mask`.
extern "C" __global__ void __launch_bounds__(96)
block_votes(const u32* mask, u32* out) {
    const int p = mask[threadIdx.x] != 0;
    const int any = __syncthreads_or(p), all = __syncthreads_and(p), count = __syncthreads_count(p);
    if (threadIdx.x == 95) {
        out[0] = any;
        out[1] = all;
        out[2] = count;
    }
}

// c [16, 8] = a [16, k] · bᵀ, b [8, k] along k or [k, 8] across it; two stages of copies, k a multiple of 16, one warp.
template <bool ALONG_K> static __device__ __forceinline__ void product(const bf16* a, const bf16* b, float* c, u32 k) {
    __shared__ __align__(16) bf16 tile_a[2][16][16];
    __shared__ __align__(16) bf16 tile_b[2][16][8];
    const u32 lane = lane_id();
    const auto fetch = [&](u32 stage, u32 k0) {
        copy16_async(&tile_a[stage][lane / 2][lane % 2 * 8], a + lane / 2 * k + k0 + lane % 2 * 8, 16);
        // Along k: 8 rows of two pieces, stored as 16 rows (piece, n). Across: 16 rows of one piece.
        if (lane < 16) copy16_async(&tile_b[stage][lane][0], ALONG_K ? b + lane % 8 * k + k0 + lane / 8 * 8 : b + (k0 + lane) * 8, 16);
        copies_commit();
    };
    float d[4] = {0, 0, 0, 0};
    fetch(0, 0);
    for (u32 k0 = 0; k0 < k; k0 += 16) {
        const u32 stage = k0 / 16 % 2;
        if (k0 + 16 < k) fetch(1 - stage, k0 + 16);
        else copies_commit();
        copies_wait<1>();
        __syncthreads();
        u32 u[4], v[4];
        load_blocks(u, &tile_a[stage][lane % 16][lane / 16 * 8]);
        if (ALONG_K) load_blocks(v, &tile_b[stage][lane % 16][0]);
        else load_blocks_transposed(v, &tile_b[stage][lane % 16][0]);
        multiply_blocks(d, u, v[0], v[1]);
        __syncthreads();
    }
    for (u32 e = 0; e < 4; ++e) c[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = d[e];
}

extern "C" __global__ void __launch_bounds__(32)
product_along(const bf16* a, const bf16* b, float* c, u32 k) {
    product<true>(a, b, c, k);
}

extern "C" __global__ void __launch_bounds__(32)
product_across(const bf16* a, const bf16* b, float* c, u32 k) {
    product<false>(a, b, c, k);
}

// out [32]: one built-in function after the other.
extern "C" __global__ void __launch_bounds__(1)
arithmetic(const float* in, double* out) {
    const float x = __ldg(in), y = in[1];
    const float4 q = make_float4(x, y, x + y, x * y);
    out[0] = fmaf(x, y, 1.0f);
    out[1] = rsqrtf(y);
    out[2] = sqrtf(y);
    out[3] = max(x, y) + min(x, y) * 2;
    out[4] = __popc(0xf0f0u) + __popcll(~0ull) + __ffs(8) + __clz(1);
    out[5] = __float_as_uint(1.0f);
    out[6] = (double)__double_as_longlong(1.0);
    out[7] = isfinite(x / 0.0f) ? 1 : 2;
    out[8] = exp(1.0) + log(2.0) + pow(2.0, 0.5);
    out[9] = expf(1.0f) + logf(2.0f) + powf(2.0f, 0.5f);
    out[10] = q.x + q.y + q.z + q.w;
    out[11] = from_bf16(to_bf16(1.00390625f)) + from_bf16(to_bf16(1.01171875f));
    out[12] = from_f16(f16{0x3555}) + from_f16(f16{0x0001}) + from_f16(f16{0xc400});
    out[13] = fmaxf(x / 0.0f - x / 0.0f, 3.0f);
    out[14] = __longlong_as_double(__double_as_longlong(2.5)) + __uint_as_float(__float_as_uint(0.5f));
}

// Nothing but barriers, and nothing but work: what a switch costs, and what a thread costs without one.
extern "C" __global__ void __launch_bounds__(256)
barriers(u32* out, u32 count) {
    for (u32 i = 0; i < count; ++i) __syncthreads();
    if (threadIdx.x == 0) *out = count;
}

extern "C" __global__ void __launch_bounds__(256)
no_barrier(u32* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void __launch_bounds__(256)
warp_sums(float* out, u32 count) {
    float v = (float)lane_id();
    for (u32 i = 0; i < count; ++i) v = warp_sum(v) / 32;
    out[threadIdx.x] = v;
}
