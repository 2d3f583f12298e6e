// A tile of a GEMM by one block of threads: C[m, n] = Σ_k A[m, k] · B[n, k].
//
// An operand is stored either along k (its k values lie side by side) or across it. Tile<float> multiplies in binary32 on the
// ordinary units; Tile<bf16> on the tensor cores, bf16 in, binary32 sums. Both have the same functions, so a kernel is written
// once. Sums run over k in one fixed order.
//
// Plan for bf16: 128 × 128 × 64, 256 threads, each of the 8 warps a part of 64 × 32; three stages of asynchronous copies;
// 16-byte pieces are stored at piece ^ (row % 8), so that neither the copies nor the loads of blocks meet in a bank.
// Plan for float: 64 × 64 × 16, 128 threads of 8 × 4 sums.
#pragma once
#include "device.cuh"

// An operand of a tile: its first value, the distance between rows as stored, and how many of the tile's rows (m or n) exist.
// Beyond them, and beyond k, zeros are taken. bf16: `at` 16-byte aligned, `stride` a multiple of 8; along k, k too.
template <class T> struct Operand {
    const T* at;
    u64 stride;
    u32 left;
};

template <class T, bool A_ALONG_K, bool B_ALONG_K> struct Tile;

template <bool A_ALONG_K, bool B_ALONG_K> struct Tile<float, A_ALONG_K, B_ALONG_K> {
    static constexpr int M = 64, N = 64, K = 16, THREADS = 128;
    // Values of this thread: ROWS × COLUMNS.
    static constexpr int ROWS = 8, COLUMNS = 4;

    struct Shared {
        float a[K][M + 4], b[K][N + 4];
    };
    static constexpr u32 SHARED_BYTES = sizeof(Shared);

    float sum[ROWS][COLUMNS];

    template <bool ALONG_K> static __device__ __forceinline__ void fetch(float (*to)[M + 4], Operand<float> from, u32 k0, u32 k) {
        static_assert(M == N, "both operands have the same number of rows in a tile");
        for (u32 i = threadIdx.x; i < M * K; i += THREADS) {
            const u32 row = ALONG_K ? i / K : i % M, kk = ALONG_K ? i % K : i / M;
            const bool there = row < from.left && k0 + kk < k;
            const u64 at = ALONG_K ? row * from.stride + k0 + kk : (k0 + kk) * from.stride + row;
            to[kk][row] = there ? from.at[at] : 0.0f;
        }
    }

    // Sums begin at start(m, n).
    template <class Start> __device__ __forceinline__ void multiply(void* memory, Operand<float> a, Operand<float> b, u32 k, Start start) {
        Shared& shared = *(Shared*)memory;
        const u32 row = threadIdx.x / 16 * ROWS, column = threadIdx.x % 16 * COLUMNS;
        for (int i = 0; i < ROWS; ++i)
            for (int j = 0; j < COLUMNS; ++j) sum[i][j] = start(row + i, column + j);
        for (u32 k0 = 0; k0 < k; k0 += K) {
            fetch<A_ALONG_K>(shared.a, a, k0, k);
            fetch<B_ALONG_K>(shared.b, b, k0, k);
            __syncthreads();
#pragma unroll 4
            for (int kk = 0; kk < K; ++kk) {
                float u[ROWS], v[COLUMNS];
                for (int i = 0; i < ROWS; ++i) u[i] = shared.a[kk][row + i];
                for (int j = 0; j < COLUMNS; ++j) v[j] = shared.b[kk][column + j];
                for (int i = 0; i < ROWS; ++i)
                    for (int j = 0; j < COLUMNS; ++j) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
            }
            __syncthreads();
        }
    }

    // Calls visit(m, n, value) for every value of this thread in its rows [from, to) of values.
    template <class Visit> __device__ __forceinline__ void each(u32 from, u32 to, Visit visit) {
        const u32 row = threadIdx.x / 16 * ROWS, column = threadIdx.x % 16 * COLUMNS;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            if (i < from || i >= to) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) visit(row + i, column + j, sum[i][j]);
        }
    }
};

template <bool A_ALONG_K, bool B_ALONG_K> struct Tile<bf16, A_ALONG_K, B_ALONG_K> {
    static constexpr int M = 128, N = 128, K = 64, THREADS = 256, STAGES = 3;
    static constexpr int ROWS = 4, COLUMNS = 4;
    // Values in a piece of 16 bytes.
    static constexpr int PIECE = 8;

    struct Shared {
        bf16 a[STAGES][M * K], b[STAGES][N * K];
    };
    static constexpr u32 SHARED_BYTES = sizeof(Shared);

    float sum[ROWS][COLUMNS][4];

    // Where piece `piece` of stored row `row` lies in a stage.
    template <bool ALONG_K> static __device__ __forceinline__ u32 place(u32 row, u32 piece) {
        return (row * (ALONG_K ? K : M) / PIECE + (piece ^ row % 8)) * PIECE;
    }

    template <bool ALONG_K> static __device__ __forceinline__ void fetch(bf16* to, Operand<bf16> from, u32 k0, u32 k) {
        static_assert(M == N, "both operands have the same number of rows in a tile");
        constexpr int PIECES = (ALONG_K ? K : M) / PIECE;
#pragma unroll
        for (int j = 0; j < M * K / PIECE / THREADS; ++j) {
            const u32 i = threadIdx.x + j * THREADS, row = i / PIECES, piece = i % PIECES;
            const u32 m = ALONG_K ? row : piece * PIECE, kk = ALONG_K ? k0 + piece * PIECE : k0 + row;
            const bool there = m < from.left && kk < k;
            const u64 at = ALONG_K ? m * from.stride + kk : kk * from.stride + m;
            copy16_async(to + place<ALONG_K>(row, piece), from.at + (there ? at : 0), there ? 16 : 0);
        }
    }

    __device__ __forceinline__ void multiply_stage(const bf16* a, const bf16* b) {
        const u32 block = lane_id() / 8, row8 = lane_id() % 8;
        const u32 m0 = warp_id() / 4 * 64, n0 = warp_id() % 4 * 32;
// Not all four at once: NVRTC 13.0 then runs out of registers in `encode_bf16` on sm_100a.
#pragma unroll 2
        for (int kk = 0; kk < K; kk += 16) {
            u32 u[ROWS][4], v[COLUMNS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const u32 m = m0 + i * 16 + block % 2 * 8, k = kk + block / 2 * 8;
                if (A_ALONG_K) load_blocks(u[i], a + place<true>(m + row8, k / PIECE));
                else load_blocks_transposed(u[i], a + place<false>(k + row8, m / PIECE));
            }
#pragma unroll
            for (int j = 0; j < COLUMNS / 2; ++j) {
                const u32 n = n0 + j * 16 + block / 2 * 8, k = kk + block % 2 * 8;
                if (B_ALONG_K) load_blocks(v[j], b + place<true>(n + row8, k / PIECE));
                else load_blocks_transposed(v[j], b + place<false>(k + row8, n / PIECE));
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) multiply_blocks(sum[i][j], u[i], v[j / 2][j % 2 * 2], v[j / 2][j % 2 * 2 + 1]);
        }
    }

    // Shared memory may be used for something else afterwards: every thread is done with it.
    template <class Start> __device__ __forceinline__ void multiply(void* memory, Operand<bf16> a, Operand<bf16> b, u32 k, Start start) {
        Shared& shared = *(Shared*)memory;
        each(0, ROWS, [&](u32 m, u32 n, float& value) { value = start(m, n); });
        const u32 steps = (k + K - 1) / K;
        const auto fetch_step = [&](u32 step) {
            if (step < steps) {
                fetch<A_ALONG_K>(shared.a[step % STAGES], a, step * K, k);
                fetch<B_ALONG_K>(shared.b[step % STAGES], b, step * K, k);
            }
            // An empty group too, so that the count of groups tells which step is there.
            copies_commit();
        };
        for (u32 step = 0; step < STAGES - 1; ++step) fetch_step(step);
        for (u32 step = 0; step < steps; ++step) {
            copies_wait<STAGES - 2>();
            // The step's pieces of all threads are there, and the stage that is filled next has been read by all.
            __syncthreads();
            fetch_step(step + STAGES - 1);
            multiply_stage(shared.a[step % STAGES], shared.b[step % STAGES]);
        }
        copies_wait<0>();
        __syncthreads();
    }

    template <class Visit> __device__ __forceinline__ void each(u32 from, u32 to, Visit visit) {
        const u32 m0 = warp_id() / 4 * 64 + lane_id() / 4, n0 = warp_id() % 4 * 32 + lane_id() % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            if (i < from || i >= to) continue;
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) visit(m0 + i * 16 + e / 2 * 8, n0 + j * 8 + e % 2, sum[i][j][e]);
        }
    }
};
