// The scheduler: threads of a block as fibers, barriers, collectives of warps, asynchronous copies.
//
// A thread runs until it must wait; then the next one that can run does. A stack is taken only by a thread that waits:
// the loop in `work` runs threads one after the other and goes on with the next fresh one on the same stack, so that a
// kernel without barriers never switches. EMULATOR_SEED chooses the order: 0 goes by number; any other gives the warps
// random ranks and always runs the first that can, so that some warps run far ahead and others starve. That, and not a
// fair order, is what brings missing barriers to light.
//
// This file is never built with a sanitizer, since it lives between the stacks; it tells them what they need to know.
#include "machine.h"
#include "fiber.h"
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdarg>
#include <cstdlib>
#include <vector>

#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* edge);
void __tsan_release(void* edge);
void __tsan_read_range(void* base, unsigned long bytes);
void __tsan_write_range(void* base, unsigned long bytes);
}
#endif
#ifdef EMULATOR_ASAN
extern "C" void* __asan_region_is_poisoned(void* base, size_t bytes);
#endif

namespace emulator {

Thread* current;
Block block;
void* dynamic_shared;
u32 breath;

namespace {

constexpr u32 MOST_THREADS = 1024;
constexpr u32 WARPS = 32;

struct Copy {
    void* to;
    const void* from;
    u32 bytes;
    u32 group;
};

// Copies of a thread that are on their way at once.
constexpr u32 MOST_COPIES = 256;

struct Member : Thread {
    Fiber* fiber;  // null before the first instruction
    Site site;     // where it waits
    u32 group;     // of the next copy
    u32 copy_count;
    Copy copies[MOST_COPIES];
};

// A collective for which some lanes wait.
struct Meeting {
    u32 mask;
    u32 arrived;
    Operation operation;
    Site site;
    const void* in[32];
    void* out[32];
};

// Lanes as bits.
struct Warp {
    u32 ready;
    u32 at_barrier;
    u32 ended;  // lanes that the block does not have among them
    u32 first;  // the lane that is asked first
    u32 rank;
    u32 open;   // meetings in use
    Meeting meetings[32];
#ifdef EMULATOR_TSAN
    char edges[2];  // one for every other block
#endif
};

struct Barrier {
    u32 arrived;
    u32 generation;
    Site site;
    Reduction reduction;
    u32 any, all, count;
    u32 result;
#ifdef EMULATOR_TSAN
    char edges[2][2];  // for every other block, for every other barrier
#endif
};

const Kernel* kernel;
void** parameters;
u32 alive;
Member members[MOST_THREADS];
Warp warps[WARPS];
u32 warp_count;
u32 warp_at[WARPS];  // by rank
u32 ready_ranks;
u32 last_warp;
Barrier meeting_point;
u64 random_state;
u64 switches;
u32 dynamic_bytes;

Fiber host;
Fiber* previous;  // who switched last
Fiber* entering;  // the stack that `work` begins on
Member* first;    // the thread that it begins with
// Fixed arrays: what a thread of a kernel allocated or moved here, the thread sanitizer would take for a deed of the kernel.
Fiber stacks[2 * MOST_THREADS];
u32 stacks_made;
[[maybe_unused]] Fiber* idle[MOST_THREADS];
[[maybe_unused]] u32 idle_count;

#ifdef EMULATOR_TSAN
// A thread of a block is one and the same to the sanitizer as that of the same number in the block after the next, which
// bounds their number; of two blocks in a row all threads differ, and so does what they synchronise by.
void* identities[2 * MOST_THREADS];
u32 first_identity;
void* host_tsan;
char block_edge, end_edge;
#endif

u32 random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (u32)(random_state * 0x2545f4914f6cdd1dull >> 32);
}

void seed_random(u64 a, u64 b) {
    random_state = (seed() * 0x9e3779b97f4a7c15ull) ^ (a * 0xbf58476d1ce4e5b9ull) ^ (b * 0x94d049bb133111ebull);
    random_state |= 1;
    for (int warm = 0; warm < 4; ++warm) random();
}

Member& running() { return *(Member*)current; }

bool same(Site a, Site b) { return a.line == b.line && a.column == b.column && (a.file == b.file || strcmp(a.file, b.file) == 0); }

const char* name(Operation operation) {
    static const char* const names[] = {"__syncwarp", "__ballot_sync", "__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync", "a sum over lanes",
                                        "a minimum over lanes", "a maximum over lanes", "an 'and' over lanes", "an 'or' over lanes", "an 'xor' over lanes",
                                        "__match_any_sync", "load_blocks", "load_blocks_transposed", "multiply_blocks"};
    return names[(u32)operation];
}

// ---- who runs next --------------------------------------------------------------------------------------------------

void make_ready(Warp& warp, u32 lanes) {
    if (lanes == 0) return;
    warp.ready |= lanes;
    ready_ranks |= 1u << warp.rank;
}

void draw_ranks() {
    for (u32 w = 0; w < warp_count; ++w) warp_at[w] = w;
    if (seed() != 0) {
        for (u32 w = warp_count - 1; w > 0; --w) std::swap(warp_at[w], warp_at[random() % (w + 1)]);
    }
    ready_ranks = 0;
    for (u32 rank = 0; rank < warp_count; ++rank) {
        Warp& warp = warps[warp_at[rank]];
        warp.rank = rank;
        warp.first = seed() != 0 ? random() % 32 : 0;
        if (warp.ready != 0) ready_ranks |= 1u << rank;
    }
}

// The next thread that can run, no longer marked ready; null when there is none.
Member* pick() {
    if (warps[last_warp].ready == 0) {
        if (ready_ranks == 0) return nullptr;
        last_warp = warp_at[std::countr_zero(ready_ranks)];
    }
    Warp& warp = warps[last_warp];
    const u32 lane = ((u32)std::countr_zero(std::rotr(warp.ready, (int)warp.first)) + warp.first) % 32;
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) ready_ranks &= ~(1u << warp.rank);
    return &members[last_warp * 32 + lane];
}

void set_current(Member* member) {
    current = member;
#ifdef EMULATOR_TSAN
    __tsan_switch_to_fiber(member ? identities[first_identity + (member - members)] : host_tsan, 1);
#endif
}

[[noreturn]] void report_deadlock() {
    fprintf(stderr, "emulator: deadlock in kernel %s, block (%u,%u,%u): %u threads wait for others that never come\n", kernel->name, block.index.x, block.index.y, block.index.z, alive);
    // One line for each place at which some wait.
    std::vector<const Member*> told;
    for (u32 w = 0; w < warp_count; ++w) {
        for (u32 lane = 0; lane < 32; ++lane) {
            const Member& one = members[w * 32 + lane];
            if (warps[w].ended >> lane & 1) continue;
            if (std::any_of(told.begin(), told.end(), [&](const Member* other) { return same(other->site, one.site); })) continue;
            told.push_back(&one);
            u32 count = 0;
            for (u32 other = 0; other < warp_count * 32; ++other) count += !(warps[other / 32].ended >> other % 32 & 1) && same(members[other].site, one.site);
            const char* what = "__syncthreads";
            for (u32 open = warps[w].open; open != 0; open &= open - 1) {
                const Meeting& meeting = warps[w].meetings[std::countr_zero(open)];
                if (meeting.arrived >> lane & 1) what = name(meeting.operation);
            }
            fprintf(stderr, "emulator:   %u at %s:%u in %s, thread (%u,%u,%u) among them\n", count, one.site.file, one.site.line, what, one.index.x, one.index.y, one.index.z);
        }
    }
    const u32 ended = block.shape.x * block.shape.y * block.shape.z - alive;
    if (ended != 0) fprintf(stderr, "emulator:   %u have returned\n", ended);
    abort();
}

void work();

// A stack on which `member` will be the first.
Fiber* take_stack(Member* member) {
#ifdef EMULATOR_TSAN
    // Each identity has its own: two of them at the same address would look like a race.
    Fiber* taken = &stacks[first_identity + (member - members)];
    stacks_made = 2 * MOST_THREADS;
#else
    Fiber* taken = idle_count != 0 ? idle[--idle_count] : &stacks[stacks_made++];
#endif
    taken->start(work, (u32)(member - members));
    entering = taken;
    first = member;
    return taken;
}

// Nothing may take it before the switch away from it is made.
void give_back([[maybe_unused]] Fiber* stack) {
#ifndef EMULATOR_TSAN
    idle[idle_count++] = stack;
#endif
}

#ifdef EMULATOR_TSAN
constexpr bool STACKS_ARE_SHARED = false;
#else
constexpr bool STACKS_ARE_SHARED = true;
#endif

// Leaves the current thread where it is; returns when it runs again.
void wait() {
    Member& self = running();
    Member* next = pick();
    if (!next) report_deadlock();
    if (next == &self) return;
    ++switches;
    Fiber* to = next->fiber ? next->fiber : take_stack(next);
    previous = self.fiber;
    set_current(next);
    self.fiber->switch_to(*to);
}

// ---- the life of a thread -------------------------------------------------------------------------------------------

void release_barrier() {
    Barrier& b = meeting_point;
    b.result = b.reduction == Reduction::Or ? b.any : b.reduction == Reduction::And ? b.all : b.count;
    b.arrived = 0;
    ++b.generation;
    for (u32 w = 0; w < warp_count; ++w) {
        make_ready(warps[w], warps[w].at_barrier);
        warps[w].at_barrier = 0;
    }
    if (seed() != 0 && random() % 2 == 0) draw_ranks();
}

// Whether everybody has come; then the meeting is over, and all but `self` can run.
bool conclude(Warp& warp, Meeting& meeting, u32 self) {
    const u32 needed = meeting.mask & ~warp.ended;
    if ((meeting.arrived & needed) != needed) return false;
    evaluate(meeting.operation, meeting.arrived, meeting.in, meeting.out, meeting.site);
    warp.open &= ~(1u << (&meeting - warp.meetings));
    make_ready(warp, meeting.arrived & ~self);
    return true;
}

void begin(Member* member, Fiber* fiber) {
    member->fiber = fiber;
    set_current(member);
#ifdef EMULATOR_TSAN
    __tsan_acquire(&block_edge);
#endif
}

void end(Member* member) {
#ifdef EMULATOR_TSAN
    __tsan_release(&end_edge);
#endif
    Warp& warp = warps[member->warp];
    warp.ended |= 1u << member->lane;
    --alive;
    for (u32 open = warp.open; open != 0; open &= open - 1) conclude(warp, warp.meetings[std::countr_zero(open)], 0);
    if (alive != 0 && meeting_point.arrived == alive) release_barrier();
}

// What runs on a stack: threads from their beginning, until one that has begun elsewhere is next.
void work() {
    Fiber* stack = entering;
    stack->entered(*previous);
    Member* member = first;
    for (;;) {
        begin(member, stack);
        kernel->run(parameters);
        end(member);
        member = pick();
        if (!member && alive != 0) report_deadlock();
        if (STACKS_ARE_SHARED && member && !member->fiber) continue;
        Fiber* to = !member ? &host : member->fiber ? member->fiber : take_stack(member);
        give_back(stack);
        previous = stack;
        ++switches;
        set_current(member);
        stack->switch_to(*to);
    }
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

void prepare_threads(u32 count) {
    warp_count = (count + 31) / 32;
    alive = count;
    for (u32 w = 0; w < warp_count; ++w) {
        const u32 lanes = count - w * 32 >= 32 ? 0xffffffffu : (1u << (count - w * 32)) - 1;
        warps[w].ready = lanes;
        warps[w].ended = ~lanes;
        warps[w].at_barrier = 0;
        warps[w].open = 0;
    }
    for (u32 t = 0; t < count; ++t) {
        Member& member = members[t];
        member.index = {t % block.shape.x, t / block.shape.x % block.shape.y, t / (block.shape.x * block.shape.y)};
        member.lane = t % 32;
        member.warp = t / 32;
        member.fenced = false;
        member.fiber = nullptr;
        member.group = 0;
        member.copy_count = 0;
#ifdef EMULATOR_TSAN
        void*& identity = identities[first_identity + t];
        if (!identity) identity = __tsan_create_fiber(0);
#endif
    }
    meeting_point.arrived = 0;
    draw_ranks();
    last_warp = warp_at[0];
    breath = seed() != 0 ? 1 + random() % 64 : 4096;
}

void run_block(u64 number) {
    block.index = {(u32)(number % block.grid.x), (u32)(number / block.grid.x % block.grid.y), (u32)(number / block.grid.x / block.grid.y)};
    seed_random(number, 1);
    forget_accesses(kernel->shared_begin, kernel->shared_end);
    fill(kernel->shared_begin, poison(), (size_t)(kernel->shared_end - kernel->shared_begin));
    dynamic_shared = dynamic_begin(dynamic_bytes);
#ifdef EMULATOR_TSAN
    first_identity = MOST_THREADS - first_identity;
#endif
    prepare_threads(block.shape.x * block.shape.y * block.shape.z);
#ifdef EMULATOR_TSAN
    // Threads come after the host and after their own block's memory was made, but not after other blocks: a conflict
    // between two blocks is a race.
    __tsan_release(&block_edge);
#endif
    take_stack(pick());
    previous = &host;
    host.switch_to(*entering);
    dynamic_end((u8*)dynamic_shared, dynamic_bytes);
}

}  // namespace

// ---- what kernels call ----------------------------------------------------------------------------------------------

u32 barrier(Reduction reduction, u32 value, Site site) {
    Member& self = running();
    Barrier& b = meeting_point;
    if (b.arrived == 0) {
        b.site = site;
        b.reduction = reduction;
        b.any = b.count = 0;
        b.all = 1;
    } else if (!same(b.site, site) || b.reduction != reduction) {
        fail(site, "divergent __syncthreads: other threads of the block wait in the one at %s:%u", b.site.file, b.site.line);
    }
    b.any |= value;
    b.all &= value;
    b.count += value;
#ifdef EMULATOR_TSAN
    char* edge = &b.edges[first_identity != 0][b.generation % 2];
    __tsan_release(edge);
#endif
    self.site = site;
    if (++b.arrived == alive) {
        release_barrier();
        // Sometimes the last to come goes on at once, sometimes it is the one that starves.
        if (seed() != 0 && random() % 2 == 0) {
            make_ready(warps[self.warp], 1u << self.lane);
            last_warp = warp_at[std::countr_zero(ready_ranks)];
            wait();
        }
    } else {
        warps[self.warp].at_barrier |= 1u << self.lane;
        wait();
    }
#ifdef EMULATOR_TSAN
    __tsan_acquire(edge);
#endif
    return b.result;
}

void collective(Operation operation, u32 mask, const void* in, void* out, Site site) {
    Member& self = running();
    Warp& warp = warps[self.warp];
    const u32 bit = 1u << self.lane;
    if (!(mask & bit)) fail(site, "lane %u takes part in %s, but the mask %08x leaves it out", self.lane, name(operation), mask);
    Meeting* meeting = nullptr;
    for (u32 open = warp.open; open != 0; open &= open - 1) {
        Meeting& one = warp.meetings[std::countr_zero(open)];
        if (one.mask == mask) meeting = &one;
    }
    if (!meeting) {
        const u32 at = (u32)std::countr_one(warp.open);
        warp.open |= 1u << at;
        meeting = &warp.meetings[at];
        meeting->mask = mask;
        meeting->arrived = 0;
        meeting->operation = operation;
        meeting->site = site;
    } else if (meeting->operation != operation || (operation != Operation::Sync && !same(meeting->site, site))) {
        fail(site, "the warp has diverged: lane %u is in %s, but lanes %08x wait in %s at %s:%u", self.lane, name(operation), meeting->arrived, name(meeting->operation),
             meeting->site.file, meeting->site.line);
    }
    meeting->in[self.lane] = in;
    meeting->out[self.lane] = out;
    meeting->arrived |= bit;
    self.site = site;
#ifdef EMULATOR_TSAN
    // Of all collectives only __syncwarp orders memory.
    if (operation == Operation::Sync) __tsan_release(&warp.edges[first_identity != 0]);
#endif
    if (!conclude(warp, *meeting, bit)) wait();
#ifdef EMULATOR_TSAN
    if (operation == Operation::Sync) __tsan_acquire(&warp.edges[first_identity != 0]);
#endif
}

void breathe() {
    breath = seed() != 0 ? 1 + random() % 64 : 4096;
    Member& self = running();
    Warp& warp = warps[self.warp];
    make_ready(warp, 1u << self.lane);
    // The next rank that can run, and not this thread again: it may spin on what another has to do.
    warp.first = (self.lane + 1) % 32;
    const u32 from = (warp.rank + 1) % 32;
    last_warp = warp_at[((u32)std::countr_zero(std::rotr(ready_ranks, (int)from)) + from) % 32];
    wait();
}

namespace {

void land(const Copy& one) {
#ifdef EMULATOR_TSAN
    if (one.bytes != 0) __tsan_read_range((void*)one.from, one.bytes);
    __tsan_write_range(one.to, 16);
#endif
    copy(one.to, one.from, one.bytes);
    fill((u8*)one.to + one.bytes, 0, 16 - one.bytes);
}

}  // namespace

// The destination holds nothing of use from here until the copy lands: at the wait, or at random before it.
void copy_async(void* to, const void* from, u32 bytes, Site site) {
    Member& self = running();
    if (bytes > 16) fail(site, "copy16_async of %u bytes", bytes);
    if ((size_t)to % 16 != 0 || (bytes != 0 && (size_t)from % 16 != 0)) fail(site, "copy16_async from %p to %p: not 16-byte aligned", from, to);
    if (!is_shared(to, 16)) fail(site, "copy16_async to %p, which is not the block's shared memory", to);
    if (bytes != 0 && is_shared(from, bytes)) fail(site, "copy16_async from %p, which is shared memory", from);
#ifdef EMULATOR_ASAN
    if (__asan_region_is_poisoned(to, 16)) fail(site, "copy16_async to %p: outside of every shared array", to);
    if (bytes != 0 && __asan_region_is_poisoned((void*)from, bytes)) fail(site, "copy16_async from %p: outside of every allocation", from);
#endif
#ifdef EMULATOR_TSAN
    __tsan_write_range(to, 16);
#endif
    const Copy one{to, from, bytes, self.group};
    // Faults here, where the kernel is, and not where it waits.
    u8 touched[16];
    copy(touched, from, bytes);
    fill(to, poison(), 16);
    if (seed() != 0 && random() % 8 == 0) land(one);
    else if (self.copy_count < MOST_COPIES) self.copies[self.copy_count++] = one;
    else fail(site, "more than %u copies on their way at once", MOST_COPIES);
}

void copies_commit() { ++running().group; }

void copies_wait(u32 keep) {
    Member& self = running();
    u32 left = 0;
    for (u32 i = 0; i < self.copy_count; ++i) {
        if (self.copies[i].group + keep < self.group) land(self.copies[i]);
        else self.copies[left++] = self.copies[i];
    }
    self.copy_count = left;
}

void check_row(const void* row, Site site) {
    if ((size_t)row % 16 != 0) fail(site, "the row at %p is not 16-byte aligned", row);
    if (!is_shared(row, 16)) fail(site, "the row at %p is not in the block's shared memory", row);
}

void fail(Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulator: %s:%u: ", site.file, site.line);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (%s)\n", whereabouts().c_str());
    va_end(arguments);
    abort();
}

// ---- what the driver calls ------------------------------------------------------------------------------------------

void launch(const Kernel& what, dim3 grid, dim3 shape, u32 bytes, void** values) {
    const auto start = std::chrono::steady_clock::now();
    kernel = &what;
    parameters = values;
    dynamic_bytes = bytes;
    block.grid = grid;
    block.shape = shape;
    switches = 0;
#ifdef EMULATOR_TSAN
    host_tsan = __tsan_get_current_fiber();
#endif
    const u64 blocks = (u64)grid.x * grid.y * grid.z;
    if (seed() == 0) {
        for (u64 number = 0; number < blocks; ++number) run_block(number);
    } else {
        std::vector<u32> order(blocks);
        for (u64 number = 0; number < blocks; ++number) order[number] = (u32)number;
        static u64 launches = 0;
        seed_random(++launches, 2);
        for (u64 left = blocks - 1; left > 0; --left) std::swap(order[left], order[random() % (left + 1)]);
        for (u32 number : order) run_block(number);
    }
#ifdef EMULATOR_TSAN
    __tsan_acquire(&end_edge);
#endif
    current = nullptr;
    kernel = nullptr;
    check_margins(what.name);
    if (setting("EMULATOR_STATS", 0) != 0) {
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        fprintf(stderr, "emulator: %s: %llu blocks of %u threads, %llu switches, %.3f ms\n", what.name, blocks, shape.x * shape.y * shape.z, switches, seconds * 1e3);
    }
}

std::string whereabouts() {
    if (!kernel) return "";
    char text[256];
    snprintf(text, sizeof text, "kernel %s, block (%u,%u,%u)", kernel->name, block.index.x, block.index.y, block.index.z);
    if (!current) return text;
    char thread[64];
    snprintf(thread, sizeof thread, ", thread (%u,%u,%u)", current->index.x, current->index.y, current->index.z);
    return std::string(text) + thread;
}

bool is_thread_stack(const void* address) {
    return std::any_of(stacks, stacks + stacks_made, [&](const Fiber& stack) { return stack.contains(address); });
}

bool is_shared(const void* address, size_t bytes) {
    const u8* p = (const u8*)address;
    if (p >= kernel->shared_begin && p + bytes <= kernel->shared_end) return true;
    return p >= (u8*)dynamic_shared && p + bytes <= (u8*)dynamic_shared + dynamic_bytes;
}

}  // namespace emulator
