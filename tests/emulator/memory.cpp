// Device memory and dynamic shared memory, laid out so that a wrong access shows.
//
// An allocation ends where a page ends that faults when touched; what is left between its last byte and that page (less
// than 256 bytes, the alignment that CUDA promises) is checked after every launch, or watched by the address sanitizer
// byte by byte. Freed memory faults. Addresses are used again only after all of the arena was used once.
#include "machine.h"
#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

#ifdef EMULATOR_ASAN
extern "C" void __asan_poison_memory_region(const volatile void* base, size_t bytes);
extern "C" void __asan_unpoison_memory_region(const volatile void* base, size_t bytes);
#endif

namespace emulator {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;
constexpr size_t ARENA_BYTES = (size_t)256 << 30;
constexpr u8 MARGIN = 0xa7;
// What a block may have on the largest devices, in whole pages.
constexpr size_t DYNAMIC_BYTES = 57 * PAGE;
constexpr size_t DYNAMIC_ALIGNMENT = 128;

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

struct Allocation {
    size_t bytes;
    int device;
    u8* first_page;
    u8* end_page;
};

std::mutex lock;
std::map<u8*, Allocation> allocations;
std::map<int, size_t> used;
u8* arena;
u8* next_page;
u8* dynamic_area;

[[noreturn]] void out_of_host_memory(const char* what) {
    fprintf(stderr, "emulator: the host gives no memory for %s\n", what);
    abort();
}

void hide(const void* base, size_t bytes) {
#ifdef EMULATOR_ASAN
    __asan_poison_memory_region(base, bytes);
#else
    (void)base, (void)bytes;
#endif
}

void show(const void* base, size_t bytes) {
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(base, bytes);
#else
    (void)base, (void)bytes;
#endif
}

u8* reserve(size_t bytes, const char* what) {
    void* area = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) out_of_host_memory(what);
    return (u8*)area;
}

// `bytes` of pages that nothing uses, after the last ones given.
u8* find_pages(size_t bytes) {
    if (!arena) {
        arena = reserve(ARENA_BYTES, "the arena of device memory");
        next_page = arena + PAGE;
    }
    for (int round = 0; round < 2; ++round) {
        for (;;) {
            // The first allocation that ends behind next_page.
            auto behind = std::find_if(allocations.lower_bound(next_page), allocations.end(), [&](const auto& one) { return one.second.end_page > next_page; });
            u8* end = next_page + bytes;
            if (end + PAGE > arena + ARENA_BYTES) break;
            if (behind == allocations.end() || behind->second.first_page >= end + PAGE) {
                u8* found = next_page;
                next_page = end + PAGE;
                return found;
            }
            next_page = behind->second.end_page + PAGE;
        }
        next_page = arena + PAGE;
    }
    return nullptr;
}

// The first byte of [begin, end) that is no margin any more.
u8* written(u8* begin, u8* end) {
    return std::find_if(begin, end, [](u8 byte) { return byte != MARGIN; });
}

void describe(const u8* address) {
    for (const auto& [base, one] : allocations) {
        if (address >= one.end_page && address < one.end_page + PAGE) {
            fprintf(stderr, "emulator:   %zu bytes behind the end of an allocation of %zu bytes\n", (size_t)(address - (base + one.bytes)), one.bytes);
        } else if (address < one.first_page && address >= one.first_page - PAGE) {
            fprintf(stderr, "emulator:   %zu bytes before an allocation of %zu bytes\n", (size_t)(base - address), one.bytes);
        }
    }
}

struct sigaction before[2];

// Says what the address means and lets the fault happen again, for the handler that was there before.
void on_fault(int signal, siginfo_t* info, void*) {
    static thread_local bool telling = false;
    if (telling) abort();  // a fault of its own would come for ever
    telling = true;
    const u8* address = (const u8*)info->si_addr;
    const std::string where = whereabouts();
    if (!where.empty()) {
        fprintf(stderr, "emulator: %s accesses %p\n", where.c_str(), (const void*)address);
        if (arena && address >= arena && address < arena + ARENA_BYTES) {
            fprintf(stderr, "emulator:   in device memory, where nothing is allocated\n");
            describe(address);
        } else if (dynamic_area && address >= dynamic_area - PAGE && address < dynamic_area + DYNAMIC_BYTES + PAGE) {
            fprintf(stderr, "emulator:   beyond the block's dynamic shared memory\n");
        } else if (is_thread_stack(address)) {
            fprintf(stderr, "emulator:   beyond the stack of the thread\n");
        }
    }
    telling = false;
    sigaction(signal, &before[signal == SIGBUS], nullptr);
}

}  // namespace

void* allocate(size_t bytes, int device) {
    const std::lock_guard<std::mutex> guard(lock);
    if (used[device] + bytes > capacity()) return nullptr;
    const size_t spanned = round_up(round_up(bytes, ALIGNMENT), PAGE);
    u8* pages = find_pages(spanned);
    if (!pages || mprotect(pages, spanned, PROT_READ | PROT_WRITE) != 0) return nullptr;
    u8* base = pages + spanned - round_up(bytes, ALIGNMENT);
    fill(pages, MARGIN, (size_t)(base - pages));
    fill(base, poison(), bytes);
    fill(base + bytes, MARGIN, (size_t)(pages + spanned - base) - bytes);
    hide(pages, (size_t)(base - pages));
    hide(base + bytes, (size_t)(pages + spanned - base) - bytes);
    allocations[base] = {bytes, device, pages, pages + spanned};
    used[device] += bytes;
    return base;
}

bool release(void* base) {
    check_margins("the host");
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = allocations.find((u8*)base);
    if (found == allocations.end()) return false;
    const Allocation& one = found->second;
    const size_t spanned = (size_t)(one.end_page - one.first_page);
    show(one.first_page, spanned);
    // Gives the pages back and makes them fault.
    if (mmap(one.first_page, spanned, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) out_of_host_memory("a freed allocation");
    used[one.device] -= one.bytes;
    allocations.erase(found);
    return true;
}

size_t allocated(int device) {
    const std::lock_guard<std::mutex> guard(lock);
    return used[device];
}

size_t capacity() {
    static const size_t bytes = setting("EMULATOR_MEMORY", (u64)4 << 30);
    return bytes;
}

bool inside(const void* base, size_t bytes, std::string& message) {
    const std::lock_guard<std::mutex> guard(lock);
    auto found = allocations.upper_bound((u8*)base);
    char text[160];
    if (found != allocations.begin()) {
        --found;
        const size_t offset = (size_t)((const u8*)base - found->first);
        if (offset <= found->second.bytes && bytes <= found->second.bytes - offset) return true;
        if (offset <= found->second.bytes) {
            snprintf(text, sizeof text, "%zu bytes at %p: only %zu are left of the allocation of %zu bytes", bytes, base, found->second.bytes - offset, found->second.bytes);
            message = text;
            return false;
        }
    }
    snprintf(text, sizeof text, "%zu bytes at %p: not in device memory that is allocated", bytes, base);
    message = text;
    return false;
}

void check_margins(const char* after) {
#ifdef EMULATOR_ASAN
    // Watched byte by byte already.
    (void)after;
#else
    const std::lock_guard<std::mutex> guard(lock);
    for (const auto& [base, one] : allocations) {
        u8* front = base - std::min<size_t>(ALIGNMENT, (size_t)(base - one.first_page));
        u8* low = written(front, base);
        u8* high = written(base + one.bytes, one.end_page);
        if (low == base && high == one.end_page) continue;
        if (low != base) fprintf(stderr, "emulator: after %s: something was written %zu bytes before an allocation of %zu bytes\n", after, (size_t)(base - low), one.bytes);
        else fprintf(stderr, "emulator: after %s: something was written %zu bytes behind the end of an allocation of %zu bytes\n", after, (size_t)(high - base) - one.bytes, one.bytes);
        abort();
    }
#endif
}

void forget_accesses(u8* begin, u8* end) {
#ifdef EMULATOR_TSAN
    // For the thread sanitizer a new mapping is new memory. It must be the sanitizer's mmap, which this name is.
    u8* first = (u8*)round_up((size_t)begin, PAGE);
    u8* last = (u8*)((size_t)end / PAGE * PAGE);
    if (first >= last) return;
    if (mmap(first, (size_t)(last - first), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) out_of_host_memory("shared memory");
#else
    (void)begin, (void)end;
#endif
}

u8* dynamic_begin(u32 bytes) {
    if (!dynamic_area) {
        dynamic_area = reserve(DYNAMIC_BYTES + 2 * PAGE, "dynamic shared memory") + PAGE;
        if (mprotect(dynamic_area, DYNAMIC_BYTES, PROT_READ | PROT_WRITE) != 0) out_of_host_memory("dynamic shared memory");
    }
    u8* base = dynamic_area + DYNAMIC_BYTES - round_up(bytes, DYNAMIC_ALIGNMENT);
    forget_accesses((u8*)((size_t)base / PAGE * PAGE), dynamic_area + DYNAMIC_BYTES);
    fill(base, poison(), bytes);
    fill(base + bytes, MARGIN, (size_t)(dynamic_area + DYNAMIC_BYTES - base) - bytes);
    show(dynamic_area, DYNAMIC_BYTES);
    hide(dynamic_area, (size_t)(base - dynamic_area));
    hide(base + bytes, (size_t)(dynamic_area + DYNAMIC_BYTES - base) - bytes);
    return base;
}

void dynamic_end(u8* base, u32 bytes) {
    u8* end = dynamic_area + DYNAMIC_BYTES;
    u8* high = written(base + bytes, end);
    if (high == end) return;
    fprintf(stderr, "emulator: something was written %zu bytes behind the end of %u bytes of dynamic shared memory (%s)\n", (size_t)(high - base) - bytes, bytes, whereabouts().c_str());
    abort();
}

void fill(void* base, u8 value, size_t bytes) {
    if (bytes == 16) {
        const u64 word = 0x0101010101010101ull * value;
        const u64 words[2] = {word, word};
        __builtin_memcpy(base, words, 16);
        return;
    }
#ifdef __x86_64__
    asm volatile("rep stosb" : "+D"(base), "+c"(bytes) : "a"(value) : "memory");
#else
    for (volatile u8* p = (u8*)base; bytes != 0; --bytes) *p++ = value;
#endif
}

void copy(void* to, const void* from, size_t bytes) {
    // A fixed size becomes two moves, not a call that a sanitizer would watch.
    if (bytes == 16) {
        __builtin_memcpy(to, from, 16);
        return;
    }
#ifdef __x86_64__
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
#else
    const volatile u8* source = (const u8*)from;
    for (volatile u8* p = (u8*)to; bytes != 0; --bytes) *p++ = *source++;
#endif
}

u8 poison() { return seed() % 2 == 0 ? 0xff : 0x71; }

void watch_faults() {
    static thread_local u8* signal_stack = nullptr;
    constexpr size_t bytes = 64 << 10;
    stack_t present;
    if (!signal_stack && sigaltstack(nullptr, &present) == 0 && ((present.ss_flags & SS_DISABLE) || present.ss_size < bytes)) {
        // A fault for want of stack cannot be handled on that stack, and the one that Rust gives its threads is too small to print
        // on. Lives as long as the thread, which nobody can tell.
        signal_stack = (u8*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_t mine = {};
        mine.ss_sp = signal_stack;
        mine.ss_size = bytes;
        if (signal_stack != MAP_FAILED) sigaltstack(&mine, nullptr);
    }
    static bool installed = false;
    if (installed) return;
    installed = true;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
}

u64 setting(const char* name, u64 otherwise) {
    const char* text = getenv(name);
    if (!text || !*text) return otherwise;
    char* end;
    const u64 value = strtoull(text, &end, 0);
    if (*end) {
        fprintf(stderr, "emulator: %s=%s is no number\n", name, text);
        abort();
    }
    return value;
}

u64 seed() {
    static const u64 value = setting("EMULATOR_SEED", 0);
    return value;
}

}  // namespace emulator
