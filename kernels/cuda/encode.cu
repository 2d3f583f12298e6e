// encode: a = ReLU(x · W_encᵀ + b_enc), kept as one list of (feature, activation) for each token.
//
//   x_bs [n, stride], w_enc_fs [features, stride] f32 or bf16, stride a multiple of 8
//   b_enc_f f32, −∞ from features up to the next multiple of 128
//   pairs_bc [n, capacity] of feature · 2³² + bits of the activation, sorted by feature · count_b [n]; count_f [features]
//
// Bytes: x and W_enc once (x stays in L2), 8 a pair written, sorted in place; nothing of size n × features. FLOP: 2 · n · F · D.
//
// Plan: a tile of tokens × features a block, tokens fastest, so that a tile of W_enc is fetched once for all of them. Sums
// begin at the bias, so that the activation function is all that is left of them; the few active ones go to a list in shared memory, and from there to the tokens' lists at
// places given out by one counter a token. Counters go on counting past the capacity: that is how an overflow is seen.
// `sort_lists` then sorts each list by feature, so that results do not depend on who came first, and counts firings.
//
// Rejected: an atomic on the token's counter at each of a thread's 64 sums (four times the code, and a wait at each).
#include "activation.cuh"
#include "status.cuh"
#include "tile.cuh"

template <class T>
static __device__ __forceinline__ void encode(u8* memory, const T* x_bs, const T* w_enc_fs, const float* b_enc_f, u64* pairs_bc,
                                              u32* count_b, u32 n, u32 features, u32 stride, u32 capacity) {
    using Gemm = Tile<T, true, true>;
    // Hits that fit into shared memory; a tile with more is written in as many parts as a thread has rows of sums.
    constexpr u32 ROOM = Gemm::SHARED_BYTES / sizeof(uint2) - 1;
    constexpr u32 HITS_AT_MOST = Gemm::M * Gemm::N;
    static_assert(HITS_AT_MOST / Gemm::ROWS <= ROOM, "a part has room");
    const u32 token_tiles = (n + Gemm::M - 1) / Gemm::M;
    const u32 token0 = blockIdx.x % token_tiles * Gemm::M, feature0 = blockIdx.x / token_tiles * Gemm::N;
    Gemm tile;
    tile.multiply(memory, {x_bs + (u64)token0 * stride, stride, n - token0},
                  {w_enc_fs + (u64)feature0 * stride, stride, features - feature0}, stride, [&](u32, u32 f) { return b_enc_f[feature0 + f]; });

    u32 hits = 0;
    tile.each(0, Gemm::ROWS, [&](u32, u32, float& sum) {
        hits += is_active(sum);
        forget(sum);
    });
    u32* used = (u32*)memory;
    // Bits of the activation, and token · 2¹⁶ + feature, both counted in the tile.
    uint2* list = (uint2*)memory + 1;
    if (threadIdx.x == 0) *used = 0;
    __syncthreads();
    if (hits > 0) atomicAdd(used, hits);
    __syncthreads();
    const u32 rows = *used > ROOM ? 1 : Gemm::ROWS;
    for (u32 row = 0; row < Gemm::ROWS; row += rows) {
        __syncthreads();
        if (threadIdx.x == 0) *used = 0;
        __syncthreads();
        if (rows == 1) {
            hits = 0;
            tile.each(row, row + 1, [&](u32, u32, float& sum) {
                hits += is_active(sum);
                forget(sum);
            });
        }
        u32 at = hits > 0 ? atomicAdd(used, hits) : 0;
        tile.each(row, row + rows, [&](u32 m, u32 f, float sum) {
            if (is_active(sum)) list[at++] = make_uint2(__float_as_uint(sum), m << 16 | f);
        });
        __syncthreads();
        for (u32 i = threadIdx.x; i < *used; i += Gemm::THREADS) {
            const uint2 hit = list[i];
            const u32 token = token0 + (hit.y >> 16), feature = feature0 + (hit.y & 0xffff);
            // Tokens past the last one are rows of zeros, and a positive bias makes hits of them.
            if (token >= n) continue;
            const u32 place = atomicAdd(&count_b[token], 1u);
            if (place < capacity) pairs_bc[(u64)token * capacity + place] = (u64)feature << 32 | hit.x;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
encode_f32(const float* x_bs, const float* w_enc_fs, const float* b_enc_f, u64* pairs_bc, u32* count_b, u32 n, u32 features, u32 stride, u32 capacity) {
    DYNAMIC_SHARED(u8, memory);
    encode(memory, x_bs, w_enc_fs, b_enc_f, pairs_bc, count_b, n, features, stride, capacity);
}

extern "C" __global__ void __launch_bounds__(256, 2)
encode_bf16(const bf16* x_bs, const bf16* w_enc_fs, const float* b_enc_f, u64* pairs_bc, u32* count_b, u32 n, u32 features, u32 stride, u32 capacity) {
    DYNAMIC_SHARED(u8, memory);
    encode(memory, x_bs, w_enc_fs, b_enc_f, pairs_bc, count_b, n, features, stride, capacity);
}

// The state of a new batch: nothing counted, and as many bad rows as normalize has found. It is held when the batch before it
// was refused; `before` is null when that does not matter, and `with_gradient` says whether that batch had one. One thread.
extern "C" __global__ void __launch_bounds__(32)
begin_batch(Status* status, const Status* before, u32 with_gradient, const u32* bad_rows) {
    if (threadIdx.x > 0) return;
    *status = Status{};
    status->bad_rows = *bad_rows;
    status->held = status->overflow = before && refused(before, with_gradient);
}

// Sorts a token's list by feature and counts the firings of each feature. A block a token; a bitonic network over the next
// power of two in dynamic shared memory of 8 · next_power_of_two(capacity) bytes.
extern "C" __global__ void __launch_bounds__(128)
sort_lists(u64* pairs_bc, const u32* count_b, u32* count_f, Status* status, u32 capacity) {
    constexpr u32 THREADS = 128;
    DYNAMIC_SHARED(u64, keys);
    const u32 token = blockIdx.x, count = count_b[token];
    if (count > capacity) {
        if (threadIdx.x == 0) atomicMax(&status->overflow, 1u);
        return;
    }
    u64* list = pairs_bc + (u64)token * capacity;
    u32 padded = 1;
    while (padded < count) padded *= 2;
    for (u32 i = threadIdx.x; i < padded; i += THREADS) keys[i] = i < count ? list[i] : ~0ull;
    __syncthreads();
    for (u32 size = 2; size <= padded; size *= 2) {
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            for (u32 i = threadIdx.x; i < padded / 2; i += THREADS) {
                const u32 low = i / distance * 2 * distance + i % distance, high = low + distance;
                const bool upwards = (low & size) == 0;
                const u64 a = keys[low], b = keys[high];
                if ((a > b) == upwards) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        list[i] = keys[i];
        atomicAdd(&count_f[keys[i] >> 32], 1u);
    }
}
