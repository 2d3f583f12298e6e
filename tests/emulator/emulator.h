// CUDA C++ as host C++20: what a .cu file sees when it is compiled with -DEMULATOR.
//
// One fiber a CUDA thread. Everything that makes threads wait for each other ends in emulator::barrier, emulator::collective
// or emulator::breathe; the rest of a kernel is ordinary code that the compiler and its sanitizers see as it is.
// device.cuh includes this file after its typedefs (u8 … u64, bf16, f16) and relies on what stands at the end.
#pragma once
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <math.h>
#include <source_location>
#include <type_traits>
#include <utility>

// ---- qualifiers -----------------------------------------------------------------------------------------------------

// EMULATOR_LIST leaves the two words that name a kernel in the preprocessed text: the harness finds kernels by them.
#ifndef EMULATOR_LIST
#define __global__
#define __launch_bounds__(...)
#endif
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// All that a kernel's file leaves in its .bss is shared memory: the build makes a section of it that is poisoned before each
// block. (An attribute on the variable would do, if compilers did not ignore it in templates.)
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type* const name = (type*)emulator::dynamic_shared

// ---- vectors --------------------------------------------------------------------------------------------------------

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) uint2 { u32 x, y; };
struct uint3 { u32 x, y, z; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(4) ushort2 { u16 x, y; };
struct alignas(8) ushort4 { u16 x, y, z, w; };
struct alignas(4) uchar4 { u8 x, y, z, w; };
struct dim3 { u32 x = 1, y = 1, z = 1; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(u16 x, u16 y) { return {x, y}; }
inline ushort4 make_ushort4(u16 x, u16 y, u16 z, u16 w) { return {x, y, z, w}; }

// ---- the scheduler, as kernels see it -------------------------------------------------------------------------------

namespace emulator {

// Where a kernel stands, for messages. Made in default arguments, so it is the line of the call.
struct Site {
    const char* file = "";
    u32 line = 0;
    u32 column = 0;

    Site() = default;
    Site(std::source_location at) : file(at.file_name()), line(at.line()), column(at.column()) {}
};

struct Thread {
    uint3 index;
    u32 lane;
    u32 warp;
    // This thread has called __threadfence: from then on its atomics publish what it wrote.
    bool fenced;
};

struct Block {
    uint3 index;
    dim3 shape;
    dim3 grid;
};

// What the lanes of a warp do together.
enum class Operation : u32 { Sync, Ballot, Shuffle, ShuffleXor, ShuffleUp, ShuffleDown, Add, Min, Max, And, Or, Xor, Match, Load, LoadTransposed, Multiply };

// What a lane brings to a shuffle.
struct Shuffle {
    u64 value;
    u32 argument;
    u32 width;
};

// What a lane brings to a product of blocks.
struct Product {
    float d[4];
    u32 a[4];
    u32 b[2];
};

enum class Reduction : u32 { None, Or, And, Count };

extern Thread* current;
extern Block block;
extern void* dynamic_shared;
// Atomics left until this thread lets others run.
extern u32 breath;

// All threads of the block that have not ended meet here; the result is the reduction of their values.
u32 barrier(Reduction reduction, u32 value, Site site);
// All lanes of `mask` that have not ended meet here; `in` and `out` are this lane's.
void collective(Operation operation, u32 mask, const void* in, void* out, Site site);
// Lets other threads run.
void breathe();
void copy_async(void* to, const void* from, u32 bytes, Site site);
void copies_commit();
void copies_wait(u32 keep);
void check_row(const void* row, Site site);
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Not watched: all threads count on the same number.
__attribute__((no_sanitize("thread"))) inline void at_atomic() {
    if (--breath == 0) breathe();
}

__attribute__((no_sanitize("thread"))) inline void fence() { current->fenced = true; }

template <class T> using Same = std::type_identity_t<T>;

// `change` is applied as one step; the old value is the result. For the thread sanitizer an atomic always acquires, since
// CUDA's idioms read after it what other blocks published before theirs, but releases only after a fence.
template <class T, class F> inline T atomic(T* p, F change) {
    at_atomic();
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    for (;;) {
        T next = change(old);
        const bool done = current->fenced ? __atomic_compare_exchange(p, &old, &next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
                                          : __atomic_compare_exchange(p, &old, &next, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
        if (done) return old;
    }
}

template <class T> inline T shuffle(Operation operation, u32 mask, T value, u32 argument, int width, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves up to 8 bytes");
    Shuffle in{0, argument, (u32)width};
    memcpy(&in.value, &value, sizeof(T));
    u64 out;
    collective(operation, mask, &in, &out, site);
    memcpy(&value, &out, sizeof(T));
    return value;
}

inline u32 reduce(Operation operation, u32 mask, u32 value, Site site) {
    u32 out;
    collective(operation, mask, &value, &out, site);
    return out;
}

// ---- registration: what a launch needs to know of a kernel ----------------------------------------------------------

struct Parameter {
    u32 bytes;
    bool pointer;
};

struct Kernel {
    const char* name;
    void (*run)(void** parameters);
    u32 parameter_count;
    const Parameter* parameters;
    u32 most_threads;
    // Its file's static shared memory.
    u8* shared_begin;
    u8* shared_end;
    Kernel* next;
};

void add_kernel(Kernel* kernel);

template <auto K> struct Registered;
template <class... A, void (*K)(A...)> struct Registered<K> {
    static constexpr Parameter parameters[sizeof...(A) + 1] = {{(u32)sizeof(A), std::is_pointer_v<A>}..., {0, false}};

    template <size_t... I> static void call(void** p, std::index_sequence<I...>) { K(*(std::remove_cvref_t<A>*)p[I]...); }
    static void run(void** p) { call(p, std::index_sequence_for<A...>{}); }

    Kernel kernel;
    Registered(const char* name, u32 most_threads, u8* shared_begin, u8* shared_end)
        : kernel{name, &run, sizeof...(A), parameters, most_threads, shared_begin, shared_end, nullptr} {
        add_kernel(&kernel);
    }
};

}  // namespace emulator

// A kernel's line in the list that find_kernel looks through. Not in .bss, which is shared memory.
#define EMULATOR_KERNEL(name, most_threads, begin, end) \
    static emulator::Registered<&name> registered_##name __attribute__((section("emulator_kernels")))(#name, most_threads, begin, end)

#define EMULATOR_SITE std::source_location::current()

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.shape)
#define gridDim (emulator::block.grid)
static constexpr int warpSize = 32;

// ---- barriers, votes, shuffles --------------------------------------------------------------------------------------

inline void __syncthreads(emulator::Site s = EMULATOR_SITE) { emulator::barrier(emulator::Reduction::None, 0, s); }
inline int __syncthreads_or(int p, emulator::Site s = EMULATOR_SITE) { return (int)emulator::barrier(emulator::Reduction::Or, p != 0, s); }
inline int __syncthreads_and(int p, emulator::Site s = EMULATOR_SITE) { return (int)emulator::barrier(emulator::Reduction::And, p != 0, s); }
inline int __syncthreads_count(int p, emulator::Site s = EMULATOR_SITE) { return (int)emulator::barrier(emulator::Reduction::Count, p != 0, s); }
inline void __syncwarp(u32 mask = 0xffffffffu, emulator::Site s = EMULATOR_SITE) { emulator::collective(emulator::Operation::Sync, mask, nullptr, nullptr, s); }

inline u32 __ballot_sync(u32 mask, int p, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Ballot, mask, p != 0, s); }
inline int __any_sync(u32 mask, int p, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Or, mask, p != 0, s) != 0; }
inline int __all_sync(u32 mask, int p, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::And, mask, p != 0, s) != 0; }
inline u32 __reduce_add_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Add, mask, v, s); }
inline u32 __reduce_min_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Min, mask, v, s); }
inline u32 __reduce_max_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Max, mask, v, s); }
inline u32 __reduce_and_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::And, mask, v, s); }
inline u32 __reduce_or_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Or, mask, v, s); }
inline u32 __reduce_xor_sync(u32 mask, u32 v, emulator::Site s = EMULATOR_SITE) { return emulator::reduce(emulator::Operation::Xor, mask, v, s); }

template <class T> inline u32 __match_any_sync(u32 mask, T v, emulator::Site s = EMULATOR_SITE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    u64 in = 0;
    memcpy(&in, &v, sizeof(T));
    u32 out;
    emulator::collective(emulator::Operation::Match, mask, &in, &out, s);
    return out;
}
template <class T> inline T __shfl_sync(u32 mask, T v, int lane, int width = 32, emulator::Site s = EMULATOR_SITE) { return emulator::shuffle(emulator::Operation::Shuffle, mask, v, (u32)lane, width, s); }
template <class T> inline T __shfl_xor_sync(u32 mask, T v, int with, int width = 32, emulator::Site s = EMULATOR_SITE) { return emulator::shuffle(emulator::Operation::ShuffleXor, mask, v, (u32)with, width, s); }
template <class T> inline T __shfl_up_sync(u32 mask, T v, u32 by, int width = 32, emulator::Site s = EMULATOR_SITE) { return emulator::shuffle(emulator::Operation::ShuffleUp, mask, v, by, width, s); }
template <class T> inline T __shfl_down_sync(u32 mask, T v, u32 by, int width = 32, emulator::Site s = EMULATOR_SITE) { return emulator::shuffle(emulator::Operation::ShuffleDown, mask, v, by, width, s); }

// One fiber runs at a time, so memory is always in order; the fence matters to the thread sanitizer alone.
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __nanosleep(u32) { emulator::breathe(); }
[[noreturn]] inline void __trap(emulator::Site s = EMULATOR_SITE) { emulator::fail(s, "the kernel called __trap"); }

// ---- atomics --------------------------------------------------------------------------------------------------------

template <class T> inline T atomicAdd(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T old) -> T { return old + v; });
}
template <class T> inline T atomicSub(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T old) -> T { return old - v; });
}
template <class T> inline T atomicMax(T* p, emulator::Same<T> v) {
    static_assert(std::is_integral_v<T>, "CUDA has no atomicMax of floating point");
    return emulator::atomic(p, [v](T old) -> T { return old < v ? v : old; });
}
template <class T> inline T atomicMin(T* p, emulator::Same<T> v) {
    static_assert(std::is_integral_v<T>, "CUDA has no atomicMin of floating point");
    return emulator::atomic(p, [v](T old) -> T { return v < old ? v : old; });
}
template <class T> inline T atomicOr(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T old) -> T { return old | v; });
}
template <class T> inline T atomicAnd(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T old) -> T { return old & v; });
}
template <class T> inline T atomicXor(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T old) -> T { return old ^ v; });
}
template <class T> inline T atomicExch(T* p, emulator::Same<T> v) {
    return emulator::atomic(p, [v](T) -> T { return v; });
}
template <class T> inline T atomicCAS(T* p, emulator::Same<T> compare, emulator::Same<T> v) {
    return emulator::atomic(p, [compare, v](T old) -> T { return old == compare ? v : old; });
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// As in CUDA: the other operand where one is NaN.
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return b != b || a < b ? a : b;
    else return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? a : b;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return b != b || a > b ? a : b;
    else return (std::common_type_t<A, B>)a > (std::common_type_t<A, B>)b ? a : b;
}

inline int __popc(u32 v) { return std::popcount(v); }
inline int __popcll(u64 v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return std::countl_zero((u32)v); }
inline int __clzll(long long v) { return std::countl_zero((u64)v); }
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
inline u32 __brev(u32 v) {
    u32 r = 0;
    for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
    return r;
}
inline u32 __funnelshift_l(u32 low, u32 high, u32 by) { return (u32)((((u64)high << 32) | low) << (by & 31) >> 32); }
inline u32 __funnelshift_r(u32 low, u32 high, u32 by) { return (u32)((((u64)high << 32) | low) >> (by & 31)); }

inline u32 __float_as_uint(float v) { return std::bit_cast<u32>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(u32 v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline int __float2int_rn(float v) { return (int)nearbyintf(v); }
inline int __float2int_rz(float v) { return (int)v; }
inline int __float2int_rd(float v) { return (int)floorf(v); }
inline u32 __float2uint_rn(float v) { return (u32)nearbyintf(v); }
inline u32 __float2uint_rz(float v) { return (u32)v; }
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(u32 v) { return (float)v; }
inline float __double2float_rn(double v) { return (float)v; }

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __powf(float v, float e) { return powf(v, e); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }

// Loads and stores with hints for caches.
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcv(const T* p) { return *(const volatile T*)p; }
template <class T> inline void __stcg(T* p, emulator::Same<T> v) { *p = v; }
template <class T> inline void __stcs(T* p, emulator::Same<T> v) { *p = v; }
template <class T> inline void __stwt(T* p, emulator::Same<T> v) { *p = v; }

// ---- what device.cuh asks for ---------------------------------------------------------------------------------------

inline void copy16_async(void* to, const void* from, u32 bytes, emulator::Site s = EMULATOR_SITE) { emulator::copy_async(to, from, bytes, s); }
inline void copies_commit() { emulator::copies_commit(); }
template <int N> inline void copies_wait() { emulator::copies_wait(N); }

// A lane reads its own row here, so that sanitizers see the access.
struct EmulatorRow { u16 values[8]; };
inline void load_blocks(u32 (&r)[4], const void* row, emulator::Site s = EMULATOR_SITE) {
    emulator::check_row(row, s);
    const EmulatorRow in = *(const EmulatorRow*)row;
    emulator::collective(emulator::Operation::Load, 0xffffffffu, &in, r, s);
}
inline void load_blocks_transposed(u32 (&r)[4], const void* row, emulator::Site s = EMULATOR_SITE) {
    emulator::check_row(row, s);
    const EmulatorRow in = *(const EmulatorRow*)row;
    emulator::collective(emulator::Operation::LoadTransposed, 0xffffffffu, &in, r, s);
}
inline void multiply_blocks(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, emulator::Site s = EMULATOR_SITE) {
    const emulator::Product in{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulator::collective(emulator::Operation::Multiply, 0xffffffffu, &in, d, s);
}

// Saves a register on a GPU; nothing to save here.
inline void forget(float&) {}

inline float from_f16(f16 v) {
    const u32 sign = (v.bits & 0x8000u) << 16;
    const u32 rest = v.bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | rest << 13);
    if (rest >= 0x0400u) return __uint_as_float(sign | (0x38000000u + (rest << 13)));
    return __uint_as_float(sign | __float_as_uint((float)rest * 0x1p-24f));
}
inline bf16 to_bf16(float v) {
    if (v != v) return {0x7fff};
    const u32 bits = std::bit_cast<u32>(v);
    return {(u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
