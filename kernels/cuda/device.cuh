// What every kernel is written with: number formats, sums over a warp or a block, and all inline PTX.
//
// The one rule: PTX and whatever else only a GPU has stands in the second half of this file, behind plain functions. Under
// EMULATOR the emulator of the tests supplies the same functions, so that everything else runs unchanged on a processor.
// No header of the CUDA toolkit is used: NVRTC alone compiles these files.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The upper half of a binary32, and IEEE binary16, as they lie in memory.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#ifdef EMULATOR
#include "emulator.h"
#else

// Shared memory whose size the launch decides. Once a kernel.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) u8 name##_bytes[]; type* const name = (type*)name##_bytes

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, past the registers; `bytes` < 16 fills the rest with zeros. Both 16-byte aligned.
__device__ __forceinline__ void copy16_async(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
// Closes a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are on their way.
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8×8 blocks of 16-bit values; lane l gives the address of row l % 8 of block l / 8, 16-byte aligned.
__device__ __forceinline__ void load_blocks(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// The same, each block transposed.
__device__ __forceinline__ void load_blocks_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// D[16,8] += A[16,16] · B[16,8] in bf16 with binary32 sums, spread over the warp as PTX's mma.m16n8k16 says.
__device__ __forceinline__ void multiply_blocks(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Keeps the compiler from remembering what it has computed from `v`: to compute it again is cheaper than a register.
__device__ __forceinline__ void forget(float& v) { asm volatile("" : "+f"(v)); }

__device__ __forceinline__ float from_f16(f16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
// To nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bf16 to_bf16(float v) {
    bf16 b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(v));
    return b;
}
#endif

static constexpr u32 ALL_LANES = 0xffffffffu;
static constexpr int WARP = 32;

__device__ __forceinline__ float from_bf16(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

// One name for every stored format, so that kernels are templates over it.
__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ float load(const bf16* p) { return from_bf16(*p); }
__device__ __forceinline__ float load(const f16* p) { return from_f16(*p); }
__device__ __forceinline__ void store(float* p, float v) { *p = v; }
__device__ __forceinline__ void store(bf16* p, float v) { *p = to_bf16(v); }

__device__ __forceinline__ u32 lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ u32 warp_id() { return threadIdx.x / WARP; }

// The sum over a warp, in a fixed order, on every lane.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
    for (int o = WARP / 2; o > 0; o /= 2) v += __shfl_xor_sync(ALL_LANES, v, o);
    return v;
}

// The sum over a block of THREADS threads, in a fixed order, on every thread. `slots` holds THREADS / 32 values of shared
// memory; all threads call, and may use `slots` again after the next barrier only.
template <int THREADS, class T> __device__ __forceinline__ T block_sum(T v, T* slots) {
    v = warp_sum(v);
    if (lane_id() == 0) slots[warp_id()] = v;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < THREADS / WARP; ++w) sum += slots[w];
    return sum;
}
