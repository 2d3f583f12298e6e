// owners: rows that the ranks of the data axis send each other: gradients to the rank that owns the feature, weights back to all.
//
//   touched_rw [ranks + 1, words]: a bit for each feature that a rank's tokens have touched, then for each that those of any have
//   before_rw [ranks + 1, words]: how many are touched before each word · tiles_rt [ranks + 1, tiles + 1]: before each tile of 128
//   features, and in all, for the host, which names the lengths of messages
//   dec_ts, enc_ts [rows, stride]: rows of the touched features from `first` on, see touched.cuh; gradients f32, weights as they are kept
//
// Bytes: a count and a bit a feature; gradients, 8 · stride a touched row written, and as much read for every rank that has touched it;
// weights, twice their size a touched row and rank. FLOP: 1 a value and rank, 4 for its norm.
//
// Plan: a bit a thread, and a block a rank that counts bits before words; then a block a feature, which ends at once when nothing has touched it.
// Left to itself the compiler makes room for more than 8 blocks of some kernels, and spills a value for them.
//
// Rejected: all rows, whatever was touched, whose messages need no counts and no word to the host (4,096 tokens with 100 active features
// each touch one of 83 rows when there are 34M, and one of 3 when there are 1M).
#include "gradient.cuh"
#include "parameter.cuh"
#include "status.cuh"
#include "touched.cuh"

// What this rank's own tokens have touched: all features where `all` is set, none where the batch is refused for want of room.
extern "C" __global__ void __launch_bounds__(256)
mark_touched(const u32* count_f, const Status* status, u32* touched_w, u32 features, u32 all) {
    const u32 f = blockIdx.x * 256 + threadIdx.x;
    const bool touched = f < features && (all || (!status->overflow && count_f[f] > 0));
    const u32 word = __ballot_sync(ALL_LANES, touched);
    if (lane_id() == 0 && f < features) touched_w[f / 32] = word;
}

// Counts what stands before each word and tile, and unites the bits of the ranks. A block a rank, and one for them all.
extern "C" __global__ void __launch_bounds__(1024)
count_touched(u32* touched_rw, u32* before_rw, u32* tiles_rt, u32 ranks, u32 words) {
    constexpr u32 THREADS = 1024, WORDS_IN_A_TILE = 4;
    __shared__ u32 slots[THREADS / WARP];
    const u32 tiles = (words + WORDS_IN_A_TILE - 1) / WORDS_IN_A_TILE;
    u32* const before_w = before_rw + (u64)blockIdx.x * words;
    u32* const tiles_t = tiles_rt + (u64)blockIdx.x * (tiles + 1);
    u32 before = 0;
    for (u32 w0 = 0; w0 < words; w0 += THREADS) {
        const u32 w = w0 + threadIdx.x;
        u32 word = 0;
        if (w < words && blockIdx.x < ranks) word = touched_rw[(u64)blockIdx.x * words + w];
        if (w < words && blockIdx.x == ranks) {
            for (u32 rank = 0; rank < ranks; ++rank) word |= touched_rw[(u64)rank * words + w];
            touched_rw[(u64)ranks * words + w] = word;
        }
        u32 sum = __popc(word);
        for (u32 o = 1; o < WARP; o *= 2) {
            const u32 other = __shfl_up_sync(ALL_LANES, sum, o);
            if (lane_id() >= o) sum += other;
        }
        if (lane_id() == WARP - 1) slots[warp_id()] = sum;
        __syncthreads();
        u32 at = before + sum - __popc(word);
        for (u32 i = 0; i < THREADS / WARP; ++i) {
            if (i < warp_id()) at += slots[i];
            before += slots[i];
        }
        if (w < words) before_w[w] = at;
        if (w < words && w % WORDS_IN_A_TILE == 0) tiles_t[w / WORDS_IN_A_TILE] = at;
        __syncthreads();
    }
    if (threadIdx.x == 0) tiles_t[tiles] = before;
}

// Gradient rows of touched features, as backward has them of this rank's tokens: zeros where only those of others have touched one. A block
// a feature from `touched.first` on.
template <class T>
static __device__ __forceinline__ void gradient_rows(const Csc<T>& csc, const T* w_dec_fs, const float* norm_f, const float* activation_f,
                                                     const Status* status, const Touched& touched, float* dec_ts, float* enc_ts,
                                                     float lambda_over_b) {
    const u32 f = touched.first + blockIdx.x;
    u32 row;
    if (status->overflow || !touched.find(f, row)) return;
    const float norm = norm_f[f], inverse = norm > 0 ? 1.0f / norm : 0.0f;
    const float pull = lambda_over_b * activation_f[f] * inverse;
    for (u32 d = threadIdx.x * 4; d < csc.stride; d += COLUMN_BLOCK) {
        GradientColumns gradient = sum_run(csc, f, d);
        gradient.dec.add(pull, load_columns(w_dec_fs + (u64)f * csc.stride + d));
        const u64 at = (u64)row * csc.stride + d;
        store_columns(dec_ts + at, gradient.dec);
        store_columns(enc_ts + at, gradient.enc);
    }
}

extern "C" __global__ void __launch_bounds__(128, 8)
gradient_rows_f32(Csc<float> csc, const float* w_dec_fs, const float* norm_f, const float* activation_f, const Status* status, Touched touched,
                  float* dec_ts, float* enc_ts, float lambda_over_b) {
    gradient_rows(csc, w_dec_fs, norm_f, activation_f, status, touched, dec_ts, enc_ts, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
gradient_rows_bf16(Csc<bf16> csc, const bf16* w_dec_fs, const float* norm_f, const float* activation_f, const Status* status, Touched touched,
                   float* dec_ts, float* enc_ts, float lambda_over_b) {
    gradient_rows(csc, w_dec_fs, norm_f, activation_f, status, touched, dec_ts, enc_ts, lambda_over_b);
}

// Rows of the ranks, for the features that this one owns. kernels/src/cuda/ranks/owners.rs has the same fields in the same order.
struct Parts {
    const u32* touched_rw;
    const u32* before_rw;
    // Of this rank, with a row for every feature that any has touched; their sums in the end.
    float* dec_ts;
    float* enc_ts;
    // Of the others, each `pitch` values behind that of the rank before; what stands at this rank's own place is not looked at.
    const float* dec_rts;
    const float* enc_rts;
    u64 pitch;
    u32 words, ranks, me, first, stride;

    // Of one rank, or of all.
    __device__ __forceinline__ Touched of(u32 rank) const { return {touched_rw + (u64)rank * words, before_rw + (u64)rank * words, first}; }
};

// Sums rows in the order of the ranks, and gives ‖∂W_dec[f]‖² + ‖∂W_enc[f]‖² + ∂b_enc[f]². A block a feature from `parts.first` on.
extern "C" __global__ void __launch_bounds__(128, 8)
sum_rows(Parts parts, const float* bias_f, float* norm2_f) {
    __shared__ float slots[COLUMN_THREADS / WARP];
    const u32 f = parts.first + blockIdx.x;
    u32 own_row;
    if (!parts.of(parts.ranks).find(f, own_row)) {
        if (threadIdx.x == 0) norm2_f[f] = 0;
        return;
    }
    float norm2 = 0;
    for (u32 d = threadIdx.x * 4; d < parts.stride; d += COLUMN_BLOCK) {
        const u64 own = (u64)own_row * parts.stride + d;
        GradientColumns sum;
        for (u32 rank = 0; rank < parts.ranks; ++rank) {
            u32 row;
            if (!parts.of(rank).find(f, row)) continue;
            const u64 at = rank * parts.pitch + (u64)row * parts.stride + d;
            sum.dec.add(1.0f, load_columns(rank == parts.me ? parts.dec_ts + own : parts.dec_rts + at));
            sum.enc.add(1.0f, load_columns(rank == parts.me ? parts.enc_ts + own : parts.enc_rts + at));
        }
        norm2 += sum.dec.dot(sum.dec) + sum.enc.dot(sum.enc);
        store_columns(parts.dec_ts + own, sum.dec);
        store_columns(parts.enc_ts + own, sum.enc);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots);
    if (threadIdx.x == 0) norm2_f[f] = norm2 + bias_f[f] * bias_f[f];
}

// The weights of touched features as messages carry them. A block a feature from `touched.first` on.
template <class W>
static __device__ __forceinline__ void pack_rows(const Parameter& w_enc, const Parameter& b_enc, const Parameter& w_dec, const Touched& touched,
                                                 W* dec_ts, W* enc_ts, float* bias_t, u32 stride) {
    const u32 f = touched.first + blockIdx.x;
    u32 row;
    if (!touched.find(f, row)) return;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const Place place(f, d, stride);
        store_columns(dec_ts + (u64)row * stride + d, load_weights<W>(w_dec, place));
        store_columns(enc_ts + (u64)row * stride + d, load_weights<W>(w_enc, place));
    }
    if (threadIdx.x == 0) bias_t[row] = ((const float*)b_enc.value)[f];
}

extern "C" __global__ void __launch_bounds__(128)
pack_rows_f32(Parameter w_enc, Parameter b_enc, Parameter w_dec, Touched touched, float* dec_ts, float* enc_ts, float* bias_t, u32 stride) {
    pack_rows(w_enc, b_enc, w_dec, touched, dec_ts, enc_ts, bias_t, stride);
}

extern "C" __global__ void __launch_bounds__(128)
pack_rows_bf16(Parameter w_enc, Parameter b_enc, Parameter w_dec, Touched touched, bf16* dec_ts, bf16* enc_ts, float* bias_t, u32 stride) {
    pack_rows(w_enc, b_enc, w_dec, touched, dec_ts, enc_ts, bias_t, stride);
}

// And back to the weights; copies and norms follow.
template <class W>
static __device__ __forceinline__ void unpack_rows(const Parameter& w_enc, const Parameter& b_enc, const Parameter& w_dec, float* norm_f,
                                                   const Touched& touched, const W* dec_ts, const W* enc_ts, const float* bias_t, u32 stride) {
    __shared__ float slots[COLUMN_THREADS / WARP];
    const u32 f = touched.first + blockIdx.x;
    u32 row;
    if (!touched.find(f, row)) return;
    float norm2 = 0;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const u64 from = (u64)row * stride + d, at = (u64)f * stride + d;
        const Columns dec = load_columns(dec_ts + from), enc = load_columns(enc_ts + from);
        norm2 += dec.dot(dec);
        store_columns((W*)w_dec.value + at, dec);
        store_columns((W*)w_enc.value + at, enc);
        if (w_dec.copy) store_columns(w_dec.copy + at, dec);
        if (w_enc.copy) store_columns(w_enc.copy + at, enc);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots);
    if (threadIdx.x > 0) return;
    ((float*)b_enc.value)[f] = bias_t[row];
    norm_f[f] = sqrtf(norm2);
}

extern "C" __global__ void __launch_bounds__(128, 8)
unpack_rows_f32(Parameter w_enc, Parameter b_enc, Parameter w_dec, float* norm_f, Touched touched, const float* dec_ts, const float* enc_ts,
                const float* bias_t, u32 stride) {
    unpack_rows(w_enc, b_enc, w_dec, norm_f, touched, dec_ts, enc_ts, bias_t, stride);
}

extern "C" __global__ void __launch_bounds__(128, 8)
unpack_rows_bf16(Parameter w_enc, Parameter b_enc, Parameter w_dec, float* norm_f, Touched touched, const bf16* dec_ts, const bf16* enc_ts,
                 const float* bias_t, u32 stride) {
    unpack_rows(w_enc, b_enc, w_dec, norm_f, touched, dec_ts, enc_ts, bias_t, stride);
}
