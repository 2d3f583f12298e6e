// adam: the update of every row that fired (modes touched and catchup) or of all (dense), fused with the gradient's rows:
//
//   g ← clip · ∂      m ← m + (g − m)(1 − β₁)      v ← β₂ v + (1 − β₂) g²      w ← w − (lr / c₁) · m / (√v / √c₂ + ε)
//   c₁ = 1 − β₁^(s+1),  c₂ = 1 − β₂^(s+1),  clip = min(1, clip / (‖∂‖ + 1e-6))
//   catchup, before that, for k skipped steps:  w ← w − (lr / c₁) · m / (√v / √c₂ + ε) · Σ_{j=1..k} r^j,  r = β₁ / √β₂,
//   m ← β₁^k m,  v ← β₂^k v, with lr of the first skipped step and the corrections of the row's last update
//
//   w, m, v [features, stride] for W_enc and W_dec, in the formats of parameter.cuh: computed in f32, stored once · f32 for
//   b_enc [features] and b_dec [stride] · norm_f = ‖W_dec[f]‖ of what is stored · last_update_f, last_fired_f [features]: see Clock in device.rs
//
// Bytes a touched row: 2 · stride times what a weight and its moments take, read and written (f32 24, and 2 for a bf16 copy; bf16 weights
// 4; moments in bf16 8, in 8 bits 4); the gradient's, see backward. FLOP: about 14 a parameter, and 40 integer operations for a draw.
//
// Plan: a block a feature, 4 columns a thread: the gradient's columns come from the pairs (sparse path) or from rows that the
// dense path has stored for a tile of features; both rows are updated at once, and the decoder's norm follows.
#include "gradient.cuh"
#include "parameter.cuh"
#include "status.cuh"
#include "touched.cuh"

static constexpr float REST1 = 0.1f, BETA2 = 0.999f, REST2 = 0.001f, EPSILON = 1e-8f;

// What is the same for all rows of a step. kernels/src/cuda/ops/adam.rs has the same fields in the same order.
struct Update {
    double learning_rate, decay_from, steps;
    u64 step, tokens;
    // Of the recipe: what is rounded stochastically is keyed by it.
    u64 seed;
    float clip;
    // lr / c₁ and 1 / √c₂.
    float factor, root;
    // 0 dense, 1 catchup, 2 touched.
    u32 mode;
    // Where this rank's features begin among all ranks'.
    u32 first_feature;
};

// What a row is multiplied by.
struct Coefficients {
    float clip, factor, root;
    // Of the steps that it skipped; `skipped` is 0 without them.
    u32 skipped;
    float skip_factor, skip_root, decay1, decay2;
};

static __device__ double learning_rate(const Update& update, double step) {
    if (step < update.decay_from) return update.learning_rate;
    return update.learning_rate * (update.steps - step) / (update.steps - update.decay_from);
}

// The coefficients of a row that was last updated at step last_update − 1 (0: never).
static __device__ Coefficients coefficients(const Update& update, double gradient_norm, u64 last_update) {
    Coefficients c = {};
    c.clip = (float)fmin(1.0, update.clip / (gradient_norm + 1e-6));
    c.factor = update.factor, c.root = update.root;
    if (update.mode == 1 && last_update > 0 && update.step > last_update) {
        const double k = (double)(update.step - last_update), n = (double)last_update;
        const double r = 0.9 / sqrt(0.999), sum = r * (1.0 - pow(r, k)) / (1.0 - r);
        c.skipped = 1;
        c.skip_factor = (float)(learning_rate(update, n) / (1.0 - pow(0.9, n)) * sum);
        c.skip_root = (float)(1.0 / sqrt(1.0 - pow(0.999, n)));
        c.decay1 = (float)pow(0.9, k), c.decay2 = (float)pow(0.999, k);
    }
    return c;
}

static __device__ __forceinline__ void catch_up(const Coefficients& c, float& w, float& m, float& v) {
    w = fmaf(-c.skip_factor, m / fmaf(sqrtf(v), c.skip_root, EPSILON), w);
    m *= c.decay1;
    v *= c.decay2;
}

static __device__ __forceinline__ void update_value(const Coefficients& c, float gradient, float& w, float& m, float& v) {
    if (c.skipped) catch_up(c, w, m, v);
    const float g = gradient * c.clip;
    m = fmaf(g - m, REST1, m);
    v = fmaf(g * REST2, g, v * BETA2);
    w = fmaf(-c.factor, m / fmaf(sqrtf(v), c.root, EPSILON), w);
}

// Updates four columns of a row; gives ‖·‖² of their new values. With moments in 8 bits all lanes of a warp call together.
template <class W, class M>
static __device__ __forceinline__ float update_columns(const Coefficients& c, const Columns& gradient, const Parameter& to, const Place& place,
                                                       const Key& key) {
    Columns w = load_weights<W>(to, place);
    Moments moments = MomentFormat<M>::load(to, place);
#pragma unroll
    for (int i = 0; i < 4; ++i) update_value(c, gradient.v[i], w.v[i], moments.first.v[i], moments.second.v[i]);
    MomentFormat<M>::store(to, place, moments, key);
    const Columns stored = WeightFormat<W>::store(to, place, w, key);
    return stored.dot(stored);
}

// Updates a bias.
static __device__ __forceinline__ void update_bias(const Coefficients& c, float gradient, const Parameter& to, u64 at) {
    update_value(c, gradient, ((float*)to.value)[at], ((float*)to.first)[at], ((float*)to.second)[at]);
}

// The parameters of a dictionary and what follows them.
struct Dictionary {
    Parameter w_enc, b_enc, w_dec;
    float* norm_f;
    u64* last_update_f;
    u64* last_fired_f;
    const u32* count_f;
};

// Updates feature f, whose gradient's columns columns(d) gives; a feature that has not fired has a gradient of zeros.
template <class W, class M, class Gradient>
static __device__ __forceinline__ void update_feature(const Dictionary& of, const Update& update, const Status* status, u32 f, u32 stride,
                                                      float bias_gradient, Gradient columns) {
    __shared__ Coefficients shared;
    __shared__ float slots[COLUMN_THREADS / WARP];
    const bool fired = of.count_f[f] > 0;
    if (!status->ok || (!fired && update.mode != 0)) return;
    if (threadIdx.x == 0) shared = coefficients(update, status->gradient_norm, of.last_update_f[f]);
    __syncthreads();
    const Coefficients c = shared;
    const u32 feature = update.first_feature + f;
    const Key enc_key = {update.seed, update.step, feature, 0}, dec_key = {update.seed, update.step, feature, 1};
    float norm2 = 0;
    for (u32 d0 = 0; d0 < stride; d0 += COLUMN_BLOCK) {
        const Place place(f, d0 + threadIdx.x * 4, stride);
        const GradientColumns gradient = fired && place.inside ? columns(place.d) : GradientColumns{};
        norm2 += update_columns<W, M>(c, gradient.dec, of.w_dec, place, dec_key);
        update_columns<W, M>(c, gradient.enc, of.w_enc, place, enc_key);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots);
    if (threadIdx.x == 0) {
        update_bias(c, fired ? bias_gradient : 0.0f, of.b_enc, f);
        of.norm_f[f] = sqrtf(norm2);
        of.last_update_f[f] = update.step + 1;
        if (fired) of.last_fired_f[f] = update.tokens;
    }
}

// On the sparse path: a block a feature, the gradient from its pairs. Left to itself the compiler makes room for more than 8 blocks
// and spills a value for them.
template <class W, class M, class T>
static __device__ __forceinline__ void adam(const Dictionary& of, const Update& update, const Csc<T>& csc, const T* w_dec_fs,
                                            const float* bias_f, const float* activation_f, const Status* status, float lambda_over_b) {
    const u32 f = blockIdx.x;
    const float norm = of.norm_f[f], inverse = norm > 0 ? 1.0f / norm : 0.0f;
    const float pull = lambda_over_b * activation_f[f] * inverse;
    update_feature<W, M>(of, update, status, f, csc.stride, bias_f[f], [&](u32 d) {
        GradientColumns gradient = sum_run(csc, f, d);
        gradient.dec.add(pull, load_columns(w_dec_fs + (u64)f * csc.stride + d));
        return gradient;
    });
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_f32(Dictionary of, Update update, Csc<float> csc, const float* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<float, float>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_mixed(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<float, float>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_mixed_bf16(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<float, bf16>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_mixed_int8(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<float, u8>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_bf16_sr(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<bf16, float>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_bf16_sr_bf16(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<bf16, bf16>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

extern "C" __global__ void __launch_bounds__(128, 8)
adam_bf16_sr_int8(Dictionary of, Update update, Csc<bf16> csc, const bf16* w_dec_fs, const float* bias_f, const float* activation_f,
     const Status* status, float lambda_over_b) {
    adam<bf16, u8>(of, update, csc, w_dec_fs, bias_f, activation_f, status, lambda_over_b);
}

// From rows that lie in memory, [rows, stride]: those of a tile on the dense path, or sums over ranks. A block a feature from
// `touched.first` on; one that no rank has touched has not fired, and no row.
template <class W, class M>
static __device__ __forceinline__ void adam_rows(const Dictionary& of, const Update& update, const float* dec_ts, const float* enc_ts,
                                                 const float* bias_f, const Status* status, const Touched& touched, u32 stride) {
    const u32 f = touched.first + blockIdx.x;
    u32 row;
    touched.find(f, row);
    update_feature<W, M>(of, update, status, f, stride, bias_f[f], [&](u32 d) {
        const u64 at = (u64)row * stride + d;
        GradientColumns gradient;
        gradient.dec = load_columns(dec_ts + at);
        gradient.enc = load_columns(enc_ts + at);
        return gradient;
    });
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_f32(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<float, float>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_mixed_bf16(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<float, bf16>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_mixed_int8(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<float, u8>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_bf16_sr(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<bf16, float>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_bf16_sr_bf16(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<bf16, bf16>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

extern "C" __global__ void __launch_bounds__(128)
adam_rows_bf16_sr_int8(Dictionary of, Update update, const float* dec_ts, const float* enc_ts, const float* bias_f, const Status* status, Touched touched,
     u32 stride) {
    adam_rows<bf16, u8>(of, update, dec_ts, enc_ts, bias_f, status, touched, stride);
}

// b_dec, which every token touches. Four columns a thread.
extern "C" __global__ void __launch_bounds__(128)
adam_b_dec(Parameter b_dec, Update update, const float* gradient_s, const Status* status, u32 stride) {
    const Place place(0, blockIdx.x * COLUMN_BLOCK + threadIdx.x * 4, stride);
    if (!status->ok || !place.inside) return;
    const Coefficients c = coefficients(update, status->gradient_norm, 0);
    update_columns<float, float>(c, load_columns(gradient_s + place.d), b_dec, place, {});
}

// Rows of another dictionary as they will be once these have caught up. A block a feature from `first` on. The values in bf16 are the nearest
// ones: nobody goes on from them, so no error adds up, and these err least.
template <class W, class M>
static __device__ __forceinline__ void settle(const Parameter& of, const Update& update, const u64* last_update_f, W* value_fs, u32 first, u32 stride) {
    __shared__ Coefficients shared;
    const u32 f = first + blockIdx.x;
    if (threadIdx.x == 0) shared = coefficients(update, 0, last_update_f[f]);
    __syncthreads();
    const Coefficients c = shared;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const Place place(f, d, stride);
        Columns w = load_weights<W>(of, place);
        if (c.skipped) {
            Moments moments = MomentFormat<M>::load(of, place);
#pragma unroll
            for (int i = 0; i < 4; ++i) catch_up(c, w.v[i], moments.first.v[i], moments.second.v[i]);
        }
        store_columns(value_fs + place.at, w);
    }
}

extern "C" __global__ void __launch_bounds__(128)
settle_f32(Parameter of, Update update, const u64* last_update_f, float* value_fs, u32 first, u32 stride) {
    settle<float, float>(of, update, last_update_f, value_fs, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
settle_mixed_bf16(Parameter of, Update update, const u64* last_update_f, float* value_fs, u32 first, u32 stride) {
    settle<float, bf16>(of, update, last_update_f, value_fs, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
settle_mixed_int8(Parameter of, Update update, const u64* last_update_f, float* value_fs, u32 first, u32 stride) {
    settle<float, u8>(of, update, last_update_f, value_fs, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
settle_bf16_sr(Parameter of, Update update, const u64* last_update_f, bf16* value_fs, u32 first, u32 stride) {
    settle<bf16, float>(of, update, last_update_f, value_fs, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
settle_bf16_sr_bf16(Parameter of, Update update, const u64* last_update_f, bf16* value_fs, u32 first, u32 stride) {
    settle<bf16, bf16>(of, update, last_update_f, value_fs, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
settle_bf16_sr_int8(Parameter of, Update update, const u64* last_update_f, bf16* value_fs, u32 first, u32 stride) {
    settle<bf16, u8>(of, update, last_update_f, value_fs, first, stride);
}

// The same for the biases, a thread a value: b_enc, and behind it b_dec, which is owed nothing.
extern "C" __global__ void __launch_bounds__(128)
settle_biases(Parameter b_enc, Update update, const u64* last_update_f, float* b_enc_f, u32 first, u32 features, const float* b_dec_s,
              float* to_b_dec_s, u32 stride) {
    const u32 i = blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (i < features) {
        const u32 f = first + i;
        const Coefficients c = coefficients(update, 0, last_update_f[f]);
        float w = ((const float*)b_enc.value)[f];
        if (c.skipped) {
            float m = ((const float*)b_enc.first)[f], v = ((const float*)b_enc.second)[f];
            catch_up(c, w, m, v);
        }
        b_enc_f[f] = w;
    } else if (i - features < stride) {
        to_b_dec_s[i - features] = b_dec_s[i - features];
    }
}

// What follows weights that the host has set: bf16 copies and the decoder's norms. A block a feature from `first` on.
template <class W>
static __device__ __forceinline__ void follow(const Parameter& w_enc, const Parameter& w_dec, float* norm_f, u32 first, u32 stride) {
    __shared__ float slots[COLUMN_THREADS / WARP];
    const u32 f = first + blockIdx.x;
    float norm2 = 0;
    for (u32 d = threadIdx.x * 4; d < stride; d += COLUMN_BLOCK) {
        const Place place(f, d, stride);
        const Columns dec = load_weights<W>(w_dec, place);
        norm2 += dec.dot(dec);
        if (w_enc.copy) store_columns(w_enc.copy + place.at, load_weights<W>(w_enc, place));
        if (w_dec.copy) store_columns(w_dec.copy + place.at, dec);
    }
    norm2 = block_sum<COLUMN_THREADS>(norm2, slots);
    if (threadIdx.x == 0) norm_f[f] = sqrtf(norm2);
}

extern "C" __global__ void __launch_bounds__(128)
follow_f32(Parameter w_enc, Parameter w_dec, float* norm_f, u32 first, u32 stride) {
    follow<float>(w_enc, w_dec, norm_f, first, stride);
}

extern "C" __global__ void __launch_bounds__(128)
follow_bf16_sr(Parameter w_enc, Parameter w_dec, float* norm_f, u32 first, u32 stride) {
    follow<bf16>(w_enc, w_dec, norm_f, first, stride);
}
