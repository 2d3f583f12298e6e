// dense: the same step by GEMMs over a tile of features, for phases in which a large share of the features is active.
//
//   a_bt [n, tile] = ReLU(x · W_encᵀ + b_enc)      x̂ = b_dec + Σ_tiles a · W_dec      ∂a_bt = (g · W_decᵀ + (λ/B) ‖W_dec‖) · [a > 0]
//   ∂W_dec = aᵀ · g + (λ/B) (Σ a) W_dec / ‖W_dec‖      ∂W_enc = ∂aᵀ · x
//
//   x, g, W_enc, W_dec, a, ∂a f32 or bf16, sums binary32 · a tile is `tile` features wide, a multiple of 8, from feature `first`
//   on; of these `count` exist, the others are zeros
//
// Bytes a tile: small beside the GEMMs. FLOP: 2 · n · F · D for each of five GEMMs; a is made again for the backward pass,
// and with several tiles the gradient for the update, which makes it ten: memory stays bounded at any F, and the phase is short.
//
// Plan: Tile of tile.cuh with five epilogues.
#include "activation.cuh"
#include "columns.cuh"
#include "status.cuh"
#include "tile.cuh"

template <class T>
static __device__ __forceinline__ void dense_encode(u8* memory, const T* x_bs, const T* w_enc_ts, const float* b_enc_t, T* a_bt, u32 n, u32 count,
                                                    u32 tile_width, u32 stride) {
    using Gemm = Tile<T, true, true>;
    const u32 token0 = blockIdx.x * Gemm::M, t0 = blockIdx.y * Gemm::N;
    Gemm tile;
    tile.multiply(memory, {x_bs + (u64)token0 * stride, stride, n - token0}, {w_enc_ts + (u64)min(t0, count - 1) * stride, stride, count > t0 ? count - t0 : 0},
                  stride, [&](u32, u32 t) { return t0 + t < count ? b_enc_t[t0 + t] : 0.0f; });
    tile.each(0, Gemm::ROWS, [&](u32 m, u32 t, float sum) {
        if (token0 + m < n && t0 + t < tile_width) store(a_bt + (u64)(token0 + m) * tile_width + t0 + t, activate(sum));
    });
}

// x̂ += a · W_dec. Sums go on where those of the tile before ended, the first from first_s (b_dec, or zeros where another rank adds
// it): the same bits for any width of tiles.
template <class T>
static __device__ __forceinline__ void dense_decode(u8* memory, const T* a_bt, const T* w_dec_ts, const float* first_s, float* x_hat_bs, u32 n, u32 count,
                                                    u32 tile_width, u32 stride, u32 is_first) {
    using Gemm = Tile<T, true, false>;
    const u32 token0 = blockIdx.x * Gemm::M, d0 = blockIdx.y * Gemm::N;
    Gemm tile;
    const auto inside = [&](u32 m, u32 d) { return token0 + m < n && d0 + d < stride; };
    float* const to = x_hat_bs + (u64)token0 * stride + d0;
    tile.multiply(memory, {a_bt + (u64)token0 * tile_width, tile_width, n - token0}, {w_dec_ts + d0, stride, stride - d0}, count, [&](u32 m, u32 d) {
        if (!inside(m, d)) return 0.0f;
        return is_first ? first_s[d0 + d] : to[(u64)m * stride + d];
    });
    tile.each(0, Gemm::ROWS, [&](u32 m, u32 d, float sum) {
        if (inside(m, d)) to[(u64)m * stride + d] = sum;
    });
}

template <class T>
static __device__ __forceinline__ void dense_activations(u8* memory, const T* g_bs, const T* w_dec_ts, const float* norm_t, const T* a_bt, T* gradient_bt,
                                                         u32 n, u32 count, u32 tile_width, u32 stride, float lambda_over_b) {
    using Gemm = Tile<T, true, true>;
    const u32 token0 = blockIdx.x * Gemm::M, t0 = blockIdx.y * Gemm::N;
    Gemm tile;
    tile.multiply(memory, {g_bs + (u64)token0 * stride, stride, n - token0}, {w_dec_ts + (u64)min(t0, count - 1) * stride, stride, count > t0 ? count - t0 : 0},
                  stride, [&](u32, u32 t) { return t0 + t < count ? lambda_over_b * norm_t[t0 + t] : 0.0f; });
    tile.each(0, Gemm::ROWS, [&](u32 m, u32 t, float sum) {
        if (token0 + m >= n || t0 + t >= tile_width) return;
        const u64 at = (u64)(token0 + m) * tile_width + t0 + t;
        store(gradient_bt + at, t0 + t < count ? activation_gradient(load(a_bt + at), sum) : 0.0f);
    });
}

// left_btᵀ · right_bs, plus pull_t · w_ts where `w_ts` is given: (λ/B) (Σ a) / ‖W_dec‖ · W_dec.
template <class T>
static __device__ __forceinline__ void dense_gradient(u8* memory, const T* left_bt, const T* right_bs, const T* w_ts, const float* norm_t,
                                                      const float* activation_t, float* gradient_ts, u32 n, u32 count, u32 tile_width, u32 stride,
                                                      float lambda_over_b) {
    using Gemm = Tile<T, false, false>;
    const u32 t0 = blockIdx.x * Gemm::M, d0 = blockIdx.y * Gemm::N;
    Gemm tile;
    tile.multiply(memory, {left_bt + t0, tile_width, tile_width - t0}, {right_bs + d0, stride, stride - d0}, n, [](u32, u32) { return 0.0f; });
    tile.each(0, Gemm::ROWS, [&](u32 t, u32 d, float sum) {
        if (t0 + t >= count || d0 + d >= stride) return;
        const u64 at = (u64)(t0 + t) * stride + d0 + d;
        const float norm = norm_t[t0 + t];
        const float inverse = norm > 0 ? 1.0f / norm : 0.0f;
        const float pull = lambda_over_b * activation_t[t0 + t] * inverse;
        gradient_ts[at] = w_ts ? fmaf(pull, load(w_ts + at), sum) : sum;
    });
}

extern "C" __global__ void __launch_bounds__(128)
dense_encode_f32(const float* x_bs, const float* w_enc_ts, const float* b_enc_t, float* a_bt, u32 n, u32 count, u32 tile_width, u32 stride) {
    DYNAMIC_SHARED(u8, memory);
    dense_encode(memory, x_bs, w_enc_ts, b_enc_t, a_bt, n, count, tile_width, stride);
}

extern "C" __global__ void __launch_bounds__(256)
dense_encode_bf16(const bf16* x_bs, const bf16* w_enc_ts, const float* b_enc_t, bf16* a_bt, u32 n, u32 count, u32 tile_width, u32 stride) {
    DYNAMIC_SHARED(u8, memory);
    dense_encode(memory, x_bs, w_enc_ts, b_enc_t, a_bt, n, count, tile_width, stride);
}

extern "C" __global__ void __launch_bounds__(128)
dense_decode_f32(const float* a_bt, const float* w_dec_ts, const float* first_s, float* x_hat_bs, u32 n, u32 count, u32 tile_width, u32 stride, u32 is_first) {
    DYNAMIC_SHARED(u8, memory);
    dense_decode(memory, a_bt, w_dec_ts, first_s, x_hat_bs, n, count, tile_width, stride, is_first);
}

extern "C" __global__ void __launch_bounds__(256)
dense_decode_bf16(const bf16* a_bt, const bf16* w_dec_ts, const float* first_s, float* x_hat_bs, u32 n, u32 count, u32 tile_width, u32 stride, u32 is_first) {
    DYNAMIC_SHARED(u8, memory);
    dense_decode(memory, a_bt, w_dec_ts, first_s, x_hat_bs, n, count, tile_width, stride, is_first);
}

extern "C" __global__ void __launch_bounds__(128)
dense_activations_f32(const float* g_bs, const float* w_dec_ts, const float* norm_t, const float* a_bt, float* gradient_bt, u32 n, u32 count, u32 tile_width,
                      u32 stride, float lambda_over_b) {
    DYNAMIC_SHARED(u8, memory);
    dense_activations(memory, g_bs, w_dec_ts, norm_t, a_bt, gradient_bt, n, count, tile_width, stride, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(256)
dense_activations_bf16(const bf16* g_bs, const bf16* w_dec_ts, const float* norm_t, const bf16* a_bt, bf16* gradient_bt, u32 n, u32 count, u32 tile_width,
                       u32 stride, float lambda_over_b) {
    DYNAMIC_SHARED(u8, memory);
    dense_activations(memory, g_bs, w_dec_ts, norm_t, a_bt, gradient_bt, n, count, tile_width, stride, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128)
dense_gradient_f32(const float* left_bt, const float* right_bs, const float* w_ts, const float* norm_t, const float* activation_t, float* gradient_ts, u32 n,
                   u32 count, u32 tile_width, u32 stride, float lambda_over_b) {
    DYNAMIC_SHARED(u8, memory);
    dense_gradient(memory, left_bt, right_bs, w_ts, norm_t, activation_t, gradient_ts, n, count, tile_width, stride, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(256)
dense_gradient_bf16(const bf16* left_bt, const bf16* right_bs, const bf16* w_ts, const float* norm_t, const float* activation_t, float* gradient_ts, u32 n,
                    u32 count, u32 tile_width, u32 stride, float lambda_over_b) {
    DYNAMIC_SHARED(u8, memory);
    dense_gradient(memory, left_bt, right_bs, w_ts, norm_t, activation_t, gradient_ts, n, count, tile_width, stride, lambda_over_b);
}

// What a tile adds to l1_b = Σ_f a_f ‖W_dec[f]‖: 128 features at a time, in order, so that tiles of any width give the same bits.
// A block a token.
template <class T>
static __device__ __forceinline__ void dense_l1(const T* a_bt, const float* norm_t, double* l1_b, u32 count, u32 tile_width, u32 is_first) {
    // Two, in turn: one barrier lies between two uses of the same.
    __shared__ double slots[2][128 / WARP];
    const T* a_t = a_bt + (u64)blockIdx.x * tile_width;
    double l1 = is_first ? 0.0 : l1_b[blockIdx.x];
    for (u32 t0 = 0; t0 < count; t0 += 128) {
        const u32 t = t0 + threadIdx.x;
        l1 += block_sum<128>(t < count ? (double)(load(a_t + t) * norm_t[t]) : 0.0, slots[t0 / 128 % 2]);
    }
    if (threadIdx.x == 0) l1_b[blockIdx.x] = l1;
}

extern "C" __global__ void __launch_bounds__(128)
dense_l1_f32(const float* a_bt, const float* norm_t, double* l1_b, u32 count, u32 tile_width, u32 is_first) {
    dense_l1(a_bt, norm_t, l1_b, count, tile_width, is_first);
}

extern "C" __global__ void __launch_bounds__(128)
dense_l1_bf16(const bf16* a_bt, const float* norm_t, double* l1_b, u32 count, u32 tile_width, u32 is_first) {
    dense_l1(a_bt, norm_t, l1_b, count, tile_width, is_first);
}

// The firings of a tile's features among the tokens [from, to). A block for 32 features, as sum_columns.
template <class T> static __device__ __forceinline__ void dense_count(const T* a_bt, u32* count_t, u32 from, u32 to, u32 count, u32 tile_width) {
    __shared__ u32 parts[8][WARP];
    const u32 t = blockIdx.x * WARP + lane_id();
    u32 fired = 0;
    if (t < count)
        for (u32 token = from + warp_id(); token < to; token += 8) fired += is_active(load(a_bt + (u64)token * tile_width + t));
    parts[warp_id()][lane_id()] = fired;
    __syncthreads();
    if (warp_id() > 0 || t >= count) return;
    for (u32 w = 1; w < 8; ++w) fired += parts[w][lane_id()];
    count_t[t] = fired;
}

extern "C" __global__ void __launch_bounds__(256)
dense_count_f32(const float* a_bt, u32* count_t, u32 from, u32 to, u32 count, u32 tile_width) {
    dense_count(a_bt, count_t, from, to, count, tile_width);
}

extern "C" __global__ void __launch_bounds__(256)
dense_count_bf16(const bf16* a_bt, u32* count_t, u32 from, u32 to, u32 count, u32 tile_width) {
    dense_count(a_bt, count_t, from, to, count, tile_width);
}

// ‖∂W_dec[f]‖² + ‖∂W_enc[f]‖² + ∂b_enc[f]² of a tile's rows. A block a feature.
extern "C" __global__ void __launch_bounds__(128)
dense_norms(const float* dec_ts, const float* enc_ts, const float* bias_t, float* norm2_t, u32 stride) {
    __shared__ float slots[COLUMN_THREADS / WARP];
    float norm2 = 0;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const u64 at = (u64)blockIdx.x * stride + d;
        const Columns dec = load_columns(dec_ts + at), enc = load_columns(enc_ts + at);
        norm2 += dec.dot(dec) + enc.dot(enc);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots);
    if (threadIdx.x == 0) norm2_t[blockIdx.x] = norm2 + bias_t[blockIdx.x] * bias_t[blockIdx.x];
}
