// What the files of the emulator know of each other; kernels see emulator.h alone.
#pragma once
#include "types.h"
#include "emulator.h"
#include <string>
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emulator {

// ---- emulator.cpp ----

// Of all kernels compiled into this library; null when there is none of that name.
const Kernel* find_kernel(const char* name);
// Runs every block to its end. What a kernel does wrong ends the process with a message.
void launch(const Kernel& kernel, dim3 grid, dim3 shape, u32 dynamic_bytes, void** parameters);
// "kernel k, block (x,y,z), thread (x,y,z)", or nothing when no kernel runs.
std::string whereabouts();
// Whether `address` lies in the stack of a thread, or right below it.
bool is_thread_stack(const void* address);
bool is_shared(const void* address, size_t bytes);

// ---- collectives.cpp ----

// Every lane in `arrived` has brought `in` and gets `out`.
void evaluate(Operation operation, u32 arrived, const void* const (&in)[32], void* const (&out)[32], Site site);

// ---- memory.cpp ----

// Device memory: each allocation lies between pages that fault, is poisoned when it is made and inaccessible once freed.
void* allocate(size_t bytes, int device);
// False when nothing was allocated there.
bool release(void* base);
// Bytes allocated on a device, and how many there may be (EMULATOR_MEMORY).
size_t allocated(int device);
size_t capacity();
// Whether all of [base, base + bytes) lies inside one allocation. `message` says why not.
bool inside(const void* base, size_t bytes, std::string& message);
// Ends the process when something was written behind an allocation, where the page does not fault yet.
void check_margins(const char* after);
// Prepares [begin, end) of whole pages for the next block: what earlier blocks did there is no race with what comes.
void forget_accesses(u8* begin, u8* end);
// Dynamic shared memory of `bytes` for a block, and whether something was written behind it.
u8* dynamic_begin(u32 bytes);
void dynamic_end(u8* base, u32 bytes);
// Fills memory in a way that no sanitizer watches.
void fill(void* base, u8 value, size_t bytes);
void copy(void* to, const void* from, size_t bytes);
// What memory holds before anything is written: NaN for even seeds, large finite numbers for odd ones, since a maximum
// hides NaN.
u8 poison();
// Turns a fault of a kernel into a message.
void watch_faults();

// A number from the environment, in any base.
u64 setting(const char* name, u64 otherwise);
// EMULATOR_SEED: 0 runs everything in order.
u64 seed();

}  // namespace emulator
