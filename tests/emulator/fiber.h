// Stacks of their own and the switch between them: in assembly on x86-64, by ucontext elsewhere (or with -DEMULATOR_UCONTEXT).
//
// The address sanitizer has to know on which stack the code runs; the thread sanitizer counts CUDA threads and not stacks,
// so its switches are made by the scheduler.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

#ifdef EMULATOR_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
#endif

namespace emulator {

#ifdef EMULATOR_ASAN
constexpr size_t STACK_BYTES = 1 << 20;
#else
constexpr size_t STACK_BYTES = 256 << 10;
#endif
// Below each stack, never accessible: running out of stack faults instead of overwriting, even by a large array.
constexpr size_t GUARD_BYTES = 1 << 20;

// A place to go on from: the host's, or one on a stack of its own.
class Fiber {
public:
    // The stack that the caller is on.
    Fiber() = default;
    Fiber(const Fiber&) = delete;

    // Makes this fiber start `entry` at the next switch to it; whatever ran on its stack is forgotten. `number` spreads the
    // tops of the stacks over the sets of the cache: all at the same offset in a page, they would fight for a few of them.
    void start(void (*entry)(), unsigned number) {
        if (!stack) reserve();
        const size_t usable = STACK_BYTES - (number % 61) * 64;
#ifdef EMULATOR_ASSEMBLY
        void** top = (void**)(stack + usable);
        *--top = nullptr;  // a function expects its stack 8 bytes off a multiple of 16
        *--top = (void*)entry;
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        at = top;
#else
        getcontext(&at);
        at.uc_stack.ss_sp = stack;
        at.uc_stack.ss_size = usable & ~(size_t)15;
        at.uc_link = nullptr;
        makecontext(&at, entry, 0);
#endif
    }

    // Leaves off here and goes on there. Returns when something switches back.
    void switch_to(Fiber& next);

    // The first thing on a stack that was just started.
    void entered(Fiber& from) {
#ifdef EMULATOR_ASAN
        // The only way to learn where the host's stack lies.
        const void* bottom;
        size_t size;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
        if (!from.stack) {
            from.host_bottom = bottom;
            from.host_bytes = size;
        }
#else
        (void)from;
#endif
    }

    bool contains(const void* address) const { return stack && (char*)address >= stack - GUARD_BYTES && (char*)address < stack + STACK_BYTES; }

private:
    void reserve() {
        const size_t bytes = STACK_BYTES + GUARD_BYTES;
        void* area = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (area == MAP_FAILED || mprotect((char*)area + GUARD_BYTES, STACK_BYTES, PROT_READ | PROT_WRITE) != 0) {
            perror("emulator: no memory for the stack of a thread");
            abort();
        }
        stack = (char*)area + GUARD_BYTES;
    }

    char* stack = nullptr;
#ifdef EMULATOR_ASSEMBLY
    void* at = nullptr;
#else
    ucontext_t at;
#endif
#ifdef EMULATOR_ASAN
    void* fake_stack = nullptr;
    const void* host_bottom = nullptr;
    size_t host_bytes = 0;
#endif
};

#ifdef EMULATOR_ASSEMBLY
// Saves what a called function must preserve, and the place, in *from; goes on where `to` was saved.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#endif

inline void Fiber::switch_to(Fiber& next) {
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&fake_stack, next.stack ? next.stack : next.host_bottom, next.stack ? STACK_BYTES : next.host_bytes);
#endif
#ifdef EMULATOR_ASSEMBLY
    emulator_switch(&at, next.at);
#else
    swapcontext(&at, &next.at);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emulator
