// The emulator against what its kernels must compute, through the driver's entry points and nothing else.
//
//   self_test LIBRARY kernels|driver|streams|unordered|pinned|unawaited|overwritten|memory|failure|speed
//
// Ends with status 0 when all is right, 1 when something is not; what the emulator finds by itself aborts.
#include "types.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <string>
#include <vector>

static void* library;
static int wrong;

static void check(bool right, const char* what) {
    if (right) return;
    ++wrong;
    printf("WRONG: %s\n", what);
}

// Any entry point, with any arguments: the driver is C.
template <class... A> static int call(const char* name, A... arguments) {
    void* found = dlsym(library, name);
    if (!found) {
        printf("no entry point %s\n", name);
        exit(1);
    }
    return ((int (*)(A...))found)(arguments...);
}

template <class... A> static void must(const char* name, A... arguments) {
    const int result = call(name, arguments...);
    if (result == 0) return;
    printf("%s returned %d\n", name, result);
    exit(1);
}

static void* module_;
static void* null = nullptr;

static void* function(const char* name) {
    void* found;
    must("cuModuleGetFunction", &found, module_, name);
    return found;
}

struct Size {
    u32 x = 1, y = 1, z = 1;
};

template <class... A> static int try_launch(const char* name, Size grid, Size block, u32 bytes, A... arguments) {
    void* values[] = {(void*)&arguments..., nullptr};
    return call("cuLaunchKernel", function(name), grid.x, grid.y, grid.z, block.x, block.y, block.z, bytes, null, (void**)values, (void**)nullptr);
}

template <class... A> static void launch(const char* name, Size grid, Size block, u32 bytes, A... arguments) {
    const int result = try_launch(name, grid, block, bytes, arguments...);
    if (result == 0) return;
    printf("launch of %s returned %d\n", name, result);
    exit(1);
}

// An array on the device.
template <class T> struct Array {
    u64 at = 0;
    size_t count;

    explicit Array(size_t count) : count(count) { must("cuMemAlloc_v2", &at, count * sizeof(T)); }
    explicit Array(const std::vector<T>& values) : Array(values.size()) { must("cuMemcpyHtoD_v2", at, (const void*)values.data(), count * sizeof(T)); }
    Array(const Array&) = delete;
    ~Array() { must("cuMemFree_v2", at); }

    std::vector<T> read() const {
        std::vector<T> values(count);
        must("cuMemcpyDtoH_v2", (void*)values.data(), at, count * sizeof(T));
        return values;
    }
};

static std::vector<u32> numbers(size_t count, u32 below) {
    std::vector<u32> values(count);
    u64 state = 88172645463325252ull;
    for (u32& value : values) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value = (u32)(state >> 20) % below;
    }
    return values;
}

static void votes() {
    Array<u32> out(64 * 8);
    launch("votes", {}, {64}, 0, out.at);
    const std::vector<u32> got = out.read();
    u32 ballot = 0;
    for (u32 lane = 0; lane < 32; lane += 3) ballot |= 1u << lane;
    for (u32 t = 0; t < 64; ++t) {
        const u32 lane = t % 32;
        u32 same = 0;
        for (u32 other = 0; other < 32; ++other) same |= (u32)(other % 5 == lane % 5) << other;
        const u32 expected[8] = {ballot, 1, 0, 496, 5, 36, same, lane < 16 ? ballot & 0xffffu : ballot & 0xffff0000u};
        check(memcmp(&got[t * 8], expected, sizeof expected) == 0, "votes");
    }
}

static void shuffles() {
    Array<double> out(32 * 6);
    launch("shuffles", {}, {32}, 0, out.at);
    const std::vector<double> got = out.read();
    for (u32 lane = 0; lane < 32; ++lane) {
        const u32 from[6] = {7, lane ^ 5, lane >= 3 ? lane - 3 : lane, lane < 28 ? lane + 4 : lane, lane / 8 * 8 + 3, lane % 4 < 2 ? lane + 2 : lane};
        for (u32 i = 0; i < 6; ++i) check(got[lane * 6 + i] == from[i] * 10.0, "shuffles");
    }
}

static void row_sums() {
    const u32 rows = 20;
    std::vector<float> in(rows * 128);
    const std::vector<u32> drawn = numbers(in.size(), 100);
    for (size_t i = 0; i < in.size(); ++i) in[i] = (float)drawn[i];
    Array<float> from(in), sums(rows);
    launch("row_sums", {}, {128}, 0, from.at, sums.at, rows);
    const std::vector<float> got = sums.read();
    for (u32 row = 0; row < rows; ++row) {
        float sum = 0;
        for (u32 i = 0; i < 128; ++i) sum += in[row * 128 + i];
        check(got[row] == sum, "row_sums");
    }
}

static void reverse() {
    const u32 blocks = 5;
    const std::vector<u32> in = numbers(blocks * 128, 1000);
    Array<u32> from(in), to(in.size());
    launch("reverse", {blocks}, {128}, 0, from.at, to.at);
    const std::vector<u32> got = to.read();
    for (u32 i = 0; i < in.size(); ++i) check(got[i] == in[i / 128 * 128 + 127 - i % 128], "reverse");
}

static void scan() {
    for (const u32 n : {1u, 32u, 50u, 200u, 256u}) {
        const std::vector<u32> in = numbers(n, 1000);
        Array<u32> from(in), to(n);
        launch("scan", {}, {256}, n * 4, from.at, to.at, n);
        const std::vector<u32> got = to.read();
        u32 sum = 0;
        for (u32 i = 0; i < n; ++i) check(got[i] == (sum += in[i]), "scan");
    }
}

static void histogram() {
    struct Totals {
        u64 sum;
        double squares;
        float floats;
        u32 low, high, bits, swaps;
    };
    const std::vector<u32> in = numbers(1000, 5000);
    Array<u32> from(in), count(std::vector<u32>(16, 0));
    Array<Totals> totals(std::vector<Totals>{{0, 0, 0, ~0u, 0, 0, 0}});
    launch("histogram", {3}, {64}, 0, from.at, count.at, totals.at, (u32)in.size());
    std::vector<u32> expected(16, 0);
    Totals all = {0, 0, 0, ~0u, 0, 0, 0};
    for (u32 v : in) {
        ++expected[v % 16];
        all.sum += v;
        all.squares += (double)v * v;
        all.low = v < all.low ? v : all.low;
        all.high = v > all.high ? v : all.high;
        all.bits |= v;
    }
    const Totals got = totals.read()[0];
    check(count.read() == expected, "histogram: counts");
    check(got.sum == all.sum && got.squares == all.squares && got.floats == 1000, "histogram: sums");
    check(got.low == all.low && got.high == all.high && got.bits == all.bits && got.swaps == 1000, "histogram: extremes");
}

static void between_blocks() {
    const u32 blocks = 7;
    const std::vector<u32> in = numbers(blocks * 64, 1000);
    Array<u32> from(in), parts(blocks), finished(std::vector<u32>{0}), sum(1), lock(std::vector<u32>{0}), count(std::vector<u32>{0});
    launch("last_block", {blocks}, {64}, 0, from.at, parts.at, finished.at, sum.at);
    u32 expected = 0;
    for (u32 v : in) expected += v;
    check(sum.read()[0] == expected, "last_block");
    launch("locked", {3}, {96}, 0, lock.at, count.at);
    check(count.read()[0] == 3 * 96, "locked");
}

static void block_votes() {
    for (const u32 set : {0u, 1u, 95u, 96u}) {
        std::vector<u32> mask(96, 0);
        for (u32 i = 0; i < set; ++i) mask[i] = 1;
        Array<u32> from(mask), out(3);
        launch("block_votes", {}, {96}, 0, from.at, out.at);
        check(out.read() == std::vector<u32>{set > 0, set == 96, set}, "block_votes");
    }
}

static u16 bf16_of(u32 small) {
    const float value = (float)small;
    u32 bits;
    memcpy(&bits, &value, 4);
    return (u16)(bits >> 16);
}

static void products() {
    const u32 k = 80;
    const std::vector<u32> a = numbers(16 * k, 16), b = numbers(8 * k, 16);
    std::vector<u16> stored_a(16 * k), along(8 * k), across(8 * k);
    for (u32 i = 0; i < 16 * k; ++i) stored_a[i] = bf16_of(a[i]);
    for (u32 n = 0; n < 8; ++n) {
        for (u32 i = 0; i < k; ++i) along[n * k + i] = across[i * 8 + n] = bf16_of(b[n * k + i]);
    }
    std::vector<float> expected(16 * 8, 0);
    for (u32 m = 0; m < 16; ++m) {
        for (u32 n = 0; n < 8; ++n) {
            for (u32 i = 0; i < k; ++i) expected[m * 8 + n] += (float)(a[m * k + i] * b[n * k + i]);
        }
    }
    Array<u16> left(stored_a), right(along), turned(across);
    Array<float> c(16 * 8), d(16 * 8);
    launch("product_along", {}, {32}, 0, left.at, right.at, c.at, k);
    launch("product_across", {}, {32}, 0, left.at, turned.at, d.at, k);
    check(c.read() == expected, "product_along");
    check(d.read() == expected, "product_across");
}

static void arithmetic() {
    Array<float> in(std::vector<float>{1.5f, 4.0f});
    Array<double> out(15);
    launch("arithmetic", {}, {1}, 0, in.at, out.at);
    const double expected[15] = {7, 0.5, 2, 7, 8 + 64 + 4 + 31, 0x3f800000, 4607182418800017408.0, 2, 4.82564, 4.82564, 17, 1 + 1.015625, 0.333252 + 5.96e-8 - 4, 3, 3};
    const std::vector<double> got = out.read();
    for (u32 i = 0; i < 15; ++i) check(std::fabs(got[i] - expected[i]) <= 1e-5 * std::fabs(expected[i]), "arithmetic");
}

static void kernels() {
    votes();
    shuffles();
    row_sums();
    reverse();
    scan();
    histogram();
    between_blocks();
    block_votes();
    products();
    arithmetic();
}

// What the driver must refuse.
static void driver() {
    constexpr int INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500;
    Array<u32> out(256);
    std::vector<u32> host(257);
    check(call("cuMemcpyDtoH_v2", (void*)host.data(), out.at, (size_t)257 * 4) == INVALID_VALUE, "a copy past the end is refused");
    check(call("cuMemcpyHtoD_v2", out.at + 4, (const void*)host.data(), (size_t)256 * 4) == INVALID_VALUE, "a copy from the middle past the end is refused");
    check(call("cuMemcpyHtoD_v2", (u64)host.data(), (const void*)host.data(), (size_t)4) == INVALID_VALUE, "a copy to host memory is refused");
    check(call("cuMemsetD8Async", out.at, (unsigned char)1, (size_t)1025, null) == INVALID_VALUE, "a memset past the end is refused");
    check(call("cuMemFree_v2", out.at + 256) == INVALID_VALUE, "a free of something else is refused");
    check(try_launch("no_barrier", {1}, {257}, 0, out.at) == INVALID_VALUE, "more threads than the launch bounds are refused");
    check(try_launch("no_barrier", {0}, {256}, 0, out.at) == INVALID_VALUE, "an empty grid is refused");
    check(try_launch("no_barrier", {1, 65536}, {256}, 0, out.at) == INVALID_VALUE, "a grid too high is refused");
    check(try_launch("scan", {1}, {256}, 50 << 10, out.at, out.at, 1u) == INVALID_VALUE, "more shared memory than the default is refused");
    void* scan_function = function("scan");
    check(call("cuFuncSetAttribute", scan_function, 8, 200 << 10) == INVALID_VALUE, "more shared memory than there is is refused");
    must("cuFuncSetAttribute", scan_function, 8, 50 << 10);
    void* found;
    check(call("cuModuleGetFunction", &found, module_, "absent") == NOT_FOUND, "a kernel that the image does not hold is not found");
    check(call("cuModuleLoadData", &found, (const void*)"no image at all") == INVALID_IMAGE, "what is no image is refused");
    const char* name = nullptr;
    must("cuGetErrorName", 700, &name);
    check(name && strcmp(name, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0, "errors have names");
    for (u32 value : out.read()) check(value == (getenv("EMULATOR_SEED") && atoi(getenv("EMULATOR_SEED")) % 2 ? 0x71717171u : ~0u), "fresh memory is poisoned");
}

// Work in one stream for another; without the event between them the second may come too early. "fresh" or "stale" tells.
static void streams(bool ordered) {
    void *first, *second, *event, *pinned;
    must("cuStreamCreate", &first, 1u);
    must("cuStreamCreate", &second, 1u);
    must("cuEventCreate", &event, 0u);
    const u32 n = 1024;
    must("cuMemHostAlloc", &pinned, (size_t)n * 4, 0u);
    Array<u32> out(n);
    bool fresh = true;
    for (u32 round = 0; round < 20; ++round) {
        must("cuMemsetD8Async", out.at, (unsigned char)0xee, (size_t)n * 4, first);
        u64 at = out.at;
        void* values[] = {&at};
        must("cuLaunchKernel", function("no_barrier"), n / 256, 1u, 1u, 256u, 1u, 1u, 0u, first, (void**)values, (void**)nullptr);
        at = 0;  // the launch has its own copy
        must("cuEventRecord", event, first);
        if (ordered) must("cuStreamWaitEvent", second, event, 0u);
        must("cuMemcpyDtoHAsync_v2", pinned, out.at, (size_t)n * 4, second);
        must("cuStreamSynchronize", second);
        for (u32 i = 0; i < n; ++i) fresh &= ((u32*)pinned)[i] == i % 256;
        must("cuCtxSynchronize");
    }
    float milliseconds = -1;
    must("cuEventElapsedTime_v2", &milliseconds, event, event);
    check(milliseconds == 0, "an event takes no time");
    if (ordered) check(fresh, "streams in order see what was written");
    printf("%s\n", fresh ? "fresh" : "stale");
    must("cuMemFreeHost", pinned);
    must("cuEventDestroy_v2", event);
    must("cuStreamDestroy_v2", first);
    must("cuStreamDestroy_v2", second);
}

// Pinned memory to the device and back; without the wait behind the copies the host may look too early. "fresh" or "stale" tells.
static void pinned(bool waits) {
    void *stream, *event, *there, *back;
    const u32 n = 1024;
    const size_t bytes = n * sizeof(u32);
    must("cuStreamCreate", &stream, 1u);
    must("cuEventCreate", &event, 0u);
    must("cuMemHostAlloc", &there, bytes, 0u);
    must("cuMemHostAlloc", &back, bytes, 0u);
    Array<u32> between(n);
    bool fresh = true;
    for (u32 round = 0; round < 20; ++round) {
        for (u32 i = 0; i < n; ++i) ((u32*)there)[i] = round;
        must("cuMemcpyHtoDAsync_v2", between.at, (const void*)there, bytes, stream);
        must("cuMemcpyDtoHAsync_v2", back, between.at, bytes, stream);
        must("cuEventRecord", event, stream);
        if (waits) must("cuEventSynchronize", event);
        for (u32 i = 0; i < n; ++i) fresh &= ((u32*)back)[i] == round;
        must("cuStreamSynchronize", stream);
    }
    printf("%s\n", fresh ? "fresh" : "stale");
    must("cuMemFreeHost", there);
    must("cuMemFreeHost", back);
    must("cuEventDestroy_v2", event);
    must("cuStreamDestroy_v2", stream);
}

// Pinned memory that changes before it was copied. "refused" or "unseen" tells.
static void overwritten() {
    void *stream, *there;
    u64 at;
    must("cuStreamCreate", &stream, 1u);
    must("cuMemHostAlloc", &there, (size_t)4096, 0u);
    must("cuMemAlloc_v2", &at, (size_t)4096);
    memset(there, 1, 4096);
    must("cuMemcpyHtoDAsync_v2", at, (const void*)there, (size_t)4096, stream);
    memset(there, 2, 4096);
    printf("%s\n", call("cuStreamSynchronize", stream) == 0 ? "unseen" : "refused");
}

// With EMULATOR_MEMORY=1048576.
static void memory() {
    constexpr int OUT_OF_MEMORY = 2;
    u64 first, second;
    must("cuMemAllocAsync", &first, (size_t)700000, null);
    check(call("cuMemAlloc_v2", &second, (size_t)700000) == OUT_OF_MEMORY, "memory runs out");
    must("cuMemFreeAsync", first, null);
    must("cuMemAlloc_v2", &second, (size_t)700000);
    size_t free, total;
    must("cuMemGetInfo_v2", &free, &total);
    check(total == 1048576 && free == total - 700000, "what is free is known");
    must("cuMemFree_v2", second);
}

// With EMULATOR_FAIL=launch:3:700,alloc:2:2.
static void failure() {
    constexpr int OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700;
    u64 out, none;
    must("cuMemAlloc_v2", &out, (size_t)1024);
    check(call("cuMemAlloc_v2", &none, (size_t)1024) == OUT_OF_MEMORY, "the planted allocation fails");
    for (int i = 0; i < 3; ++i) launch("no_barrier", {1}, {256}, 0, out);
    check(call("cuCtxSynchronize") == ILLEGAL_ADDRESS, "the planted launch fails at the next wait");
    check(call("cuMemAlloc_v2", &none, (size_t)1024) == ILLEGAL_ADDRESS, "and the device stays broken");
}

// Of the processor, so that what else the machine does is left out.
static double seconds(const std::function<void()>& run) {
    const clock_t start = clock();
    run();
    must("cuCtxSynchronize");
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

static void speed() {
    Array<u32> out(4096 * 256);
    Array<float> sums(256);
    Array<u16> a(16 * 16000), b(8 * 16000);
    Array<float> c(128);
    const u32 count = 20000;
    printf("a switch at a barrier: %.1f ns\n", seconds([&] { launch("barriers", {}, {256}, 0, out.at, count); }) * 1e9 / (count * 256.0));
    printf("a lane's shuffle: %.1f ns\n", seconds([&] { launch("warp_sums", {}, {256}, 0, sums.at, 1000u); }) * 1e9 / (1000 * 5 * 256.0));
    printf("a thread that never waits: %.1f ns\n", seconds([&] { launch("no_barrier", {4096}, {256}, 0, out.at); }) * 1e9 / (4096 * 256.0));
    printf("a step of a product of blocks: %.2f us\n", seconds([&] { launch("product_along", {}, {32}, 0, a.at, b.at, c.at, 16000u); }) * 1e6 / 1000);
}

int main(int count, char** arguments) {
    if (count != 3) {
        fprintf(stderr, "self_test LIBRARY kernels|driver|streams|unordered|pinned|unawaited|overwritten|memory|failure|speed\n");
        return 64;
    }
    library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    void* context;
    must("cuInit", 0u);
    must("cuDevicePrimaryCtxRetain", &context, 0);
    must("cuCtxSetCurrent", context);
    // What the driver asks of an image is that it names the kernels.
    must("cuModuleLoadData", &module_,
         (const void*)".version votes shuffles row_sums reverse scan histogram last_block locked block_votes product_along product_across arithmetic barriers warp_sums no_barrier");
    const std::map<std::string, std::function<void()>> parts = {
        {"kernels", kernels}, {"driver", driver}, {"streams", [] { streams(true); }}, {"unordered", [] { streams(false); }},
        {"pinned", [] { pinned(true); }}, {"unawaited", [] { pinned(false); }}, {"overwritten", overwritten},
        {"memory", memory}, {"failure", failure}, {"speed", speed}};
    const auto part = parts.find(arguments[2]);
    if (part == parts.end()) return 64;
    part->second();
    if (wrong != 0) return 1;
    printf("%s: all right\n", arguments[2]);
    return 0;
}
