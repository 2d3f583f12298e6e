// transpose: the tokens' lists of (feature, activation) → for each feature its run of (token, activation), tokens ascending.
//
//   pairs_bc [n, capacity], count_b [n], count_f [features] as encode leaves them
//   run_f [features + 1]: where the pairs of a feature begin · token_p, activation_p [room]
//   a run of more than LONG pairs is cut into chunks of LONG: chunk_f [features + 1] where its chunks begin,
//   feature_c [chunks] whose they are · feature_l: features with runs of more than 32 pairs, long_f [features + 1] as above
//
// Bytes: 16 a pair read, 16 written (once out of order, once in order); 24 a feature. FLOP: none.
//
// Plan: sums over the counts, a tile of 2,048 features a block, then over the tiles, then down again; pairs go to their
// feature's run in any order; a pair's place in the run is the number of smaller tokens there, found by a warp among up to 32
// pairs, and by a bitmap of the tokens for longer runs: any order in, one order out.
//
// Rejected: a sort of all pairs by feature (4 passes over 16 bytes a pair, where this makes 2).
//
// Decode wants a token's features (CSR), backward a feature's tokens (CSC). Atomics hand out places in both, so who comes first is
// chance; the price of one order is reading the pairs once more.
#include "status.cuh"

static constexpr u32 LONG = 1024;
static constexpr u32 SCAN_THREADS = 256, EACH = 8, SCAN_TILE = SCAN_THREADS * EACH;

// What is summed over features.
struct Totals {
    // Pairs, runs of more than a warp, chunks of runs of more than LONG.
    u32 pairs, longs, chunks;
};

static __device__ __forceinline__ Totals operator+(Totals a, Totals b) {
    return {a.pairs + b.pairs, a.longs + b.longs, a.chunks + b.chunks};
}

static __device__ __forceinline__ Totals of_count(u32 count) {
    return {count, count > WARP, count > LONG ? (count + LONG - 1) / LONG : 0};
}

// The sum of all threads before this one in the block, and in `all` that of all threads.
static __device__ __forceinline__ Totals sum_before(Totals mine, Totals& all, Totals* slots) {
    Totals sum = mine;
    for (u32 o = 1; o < WARP; o *= 2) {
        const Totals other = {__shfl_up_sync(ALL_LANES, sum.pairs, o), __shfl_up_sync(ALL_LANES, sum.longs, o),
                              __shfl_up_sync(ALL_LANES, sum.chunks, o)};
        if (lane_id() >= o) sum = sum + other;
    }
    if (lane_id() == WARP - 1) slots[warp_id()] = sum;
    __syncthreads();
    Totals before = {0, 0, 0};
    all = before;
    for (u32 w = 0; w < SCAN_THREADS / WARP; ++w) {
        if (w < warp_id()) before = before + slots[w];
        all = all + slots[w];
    }
    __syncthreads();
    before = before + sum;
    return {before.pairs - mine.pairs, before.longs - mine.longs, before.chunks - mine.chunks};
}

// The sums of a tile of features. A block a tile.
extern "C" __global__ void __launch_bounds__(256)
scan_tiles(const u32* count_f, Totals* tiles, u32 features) {
    __shared__ Totals slots[SCAN_THREADS / WARP];
    Totals sum = {0, 0, 0};
    for (u32 j = 0; j < EACH; ++j) {
        const u32 f = blockIdx.x * SCAN_TILE + threadIdx.x * EACH + j;
        if (f < features) sum = sum + of_count(count_f[f]);
    }
    Totals all;
    sum_before(sum, all, slots);
    if (threadIdx.x == 0) tiles[blockIdx.x] = all;
}

// What lies before each tile, in place; the totals behind the last. One block. Sees whether pairs and chunks have room.
extern "C" __global__ void __launch_bounds__(256)
scan_sums(Totals* tiles, u32 count, Status* status, u32 room, u32 chunk_room) {
    __shared__ Totals slots[SCAN_THREADS / WARP];
    Totals before = {0, 0, 0};
    for (u32 i0 = 0; i0 < count; i0 += SCAN_THREADS) {
        const u32 i = i0 + threadIdx.x;
        const Totals mine = i < count ? tiles[i] : Totals{0, 0, 0};
        Totals all;
        const Totals place = before + sum_before(mine, all, slots);
        if (i < count) tiles[i] = place;
        before = before + all;
    }
    if (threadIdx.x == 0) {
        tiles[count] = before;
        if (before.pairs > room || before.chunks > chunk_room) status->overflow = 1;
    }
}

// Where each feature's run, its place among the long ones and its chunks begin. A block a tile, as in scan_tiles.
extern "C" __global__ void __launch_bounds__(256)
scan_apply(const u32* count_f, const Totals* tiles, const Status* status, u32* run_f, u32* cursor_f, u32* chunk_f, u32* feature_l,
           u32* feature_c, u32 features) {
    __shared__ Totals slots[SCAN_THREADS / WARP];
    if (status->overflow) return;
    const u32 first = blockIdx.x * SCAN_TILE + threadIdx.x * EACH;
    Totals sum = {0, 0, 0};
    for (u32 j = 0; j < EACH; ++j)
        if (first + j < features) sum = sum + of_count(count_f[first + j]);
    Totals all;
    Totals at = tiles[blockIdx.x] + sum_before(sum, all, slots);
    for (u32 j = 0; j < EACH && first + j < features; ++j) {
        const u32 f = first + j;
        const Totals own = of_count(count_f[f]);
        run_f[f] = cursor_f[f] = at.pairs;
        chunk_f[f] = at.chunks;
        if (own.longs) feature_l[at.longs] = f;
        for (u32 c = 0; c < own.chunks; ++c) feature_c[at.chunks + c] = f;
        at = at + own;
        if (f + 1 == features) {
            run_f[features] = at.pairs;
            chunk_f[features] = at.chunks;
        }
    }
}

// Pairs to the runs of their features, in any order. A block a token.
extern "C" __global__ void __launch_bounds__(128)
fill_runs(const u64* pairs_bc, const u32* count_b, const Status* status, u32* cursor_f, uint2* loose_p, u32 capacity) {
    if (status->overflow) return;
    const u32 token = blockIdx.x;
    for (u32 i = threadIdx.x; i < count_b[token]; i += 128) {
        const u64 pair = pairs_bc[(u64)token * capacity + i];
        loose_p[atomicAdd(&cursor_f[pair >> 32], 1u)] = make_uint2(token, (u32)pair);
    }
}

// Runs of up to 32 pairs in order. A warp a feature.
extern "C" __global__ void __launch_bounds__(256)
order_short_runs(const u32* run_f, const uint2* loose_p, const Status* status, u32* token_p, float* activation_p, u32 features) {
    const u32 f = blockIdx.x * (256 / WARP) + warp_id();
    if (status->overflow || f >= features) return;
    const u32 from = run_f[f], count = run_f[f + 1] - from;
    if (count == 0 || count > WARP) return;
    const uint2 pair = lane_id() < count ? loose_p[from + lane_id()] : make_uint2(~0u, 0);
    u32 place = 0;
    for (u32 other = 0; other < count; ++other) place += __shfl_sync(ALL_LANES, pair.x, other) < pair.x;
    if (lane_id() < count) {
        token_p[from + place] = pair.x;
        activation_p[from + place] = __uint_as_float(pair.y);
    }
}

// Longer runs in order. Blocks take one long run after the other; 8 · ⌈n / 32⌉ bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256)
order_long_runs(const u32* run_f, const u32* feature_l, const Totals* total, const uint2* loose_p, const Status* status,
                u32* token_p, float* activation_p, u32 n) {
    DYNAMIC_SHARED(u32, words);
    __shared__ u32 slots[256 / WARP];
    if (status->overflow) return;
    const u32 count = (n + 31) / 32;
    // For each word of the bitmap, the tokens in the words before it.
    u32* const before = words + count;
    for (u32 l = blockIdx.x; l < total->longs; l += gridDim.x) {
        const u32 f = feature_l[l], from = run_f[f], to = run_f[f + 1];
        for (u32 w = threadIdx.x; w < count; w += 256) words[w] = 0;
        __syncthreads();
        for (u32 p = from + threadIdx.x; p < to; p += 256) atomicOr(&words[loose_p[p].x / 32], 1u << loose_p[p].x % 32);
        __syncthreads();
        u32 base = 0;
        for (u32 w0 = 0; w0 < count; w0 += 256) {
            const u32 w = w0 + threadIdx.x, mine = w < count ? __popc(words[w]) : 0;
            u32 sum = mine;
            for (u32 o = 1; o < WARP; o *= 2) {
                const u32 other = __shfl_up_sync(ALL_LANES, sum, o);
                if (lane_id() >= o) sum += other;
            }
            if (lane_id() == WARP - 1) slots[warp_id()] = sum;
            __syncthreads();
            for (u32 i = 0; i < warp_id(); ++i) sum += slots[i];
            if (w < count) before[w] = base + sum - mine;
            for (u32 i = 0; i < 256 / WARP; ++i) base += slots[i];
            __syncthreads();
        }
        for (u32 p = from + threadIdx.x; p < to; p += 256) {
            const uint2 pair = loose_p[p];
            const u32 place = before[pair.x / 32] + __popc(words[pair.x / 32] & ((1u << pair.x % 32) - 1));
            token_p[from + place] = pair.x;
            activation_p[from + place] = __uint_as_float(pair.y);
        }
        __syncthreads();
    }
}
