// What the emulated driver keeps: contexts, streams as queues, events and modules, with the checks of every call and the failures that the
// environment asks for. driver.cpp has the entry points.
#pragma once
#include "machine.h"
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/uio.h>
#include <unistd.h>
#include <vector>

using namespace emulator;

namespace {

// The numbers of cuda.h.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    ECC_UNCORRECTABLE = 214,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_TIMEOUT = 702,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    UNKNOWN = 999,
};

struct Code {
    Result code;
    const char* name;
    const char* text;
};

constexpr Code CODES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

constexpr u32 DYNAMIC_BYTES_DEFAULT = 48 << 10;
constexpr u32 DYNAMIC_BYTES_AT_MOST = 163 << 10;  // of compute capability 8.0
constexpr int MULTIPROCESSORS = 4;

struct Context {
    int device;
};

struct Stream {
    Context* context;
    bool blocking;  // ordered with the default stream
    std::deque<std::function<void()>> queue;
    u64 done = 0;
    u64 number = 0;  // from 1, as streams were made; 0: a default one

    u64 enqueued() const { return done + queue.size(); }
};

struct Event {
    std::shared_ptr<Stream> stream;  // null before it was recorded
    u64 position = 0;                // of the stream, when it has happened
    std::chrono::steady_clock::time_point time;
};

struct Module {
    std::string image;
};

struct Function {
    const Kernel* kernel;
    u32 most_dynamic_bytes = DYNAMIC_BYTES_DEFAULT;
};

// Recursive: host functions of a stream run inside, and may not call back, but a destructor on the way might.
std::recursive_mutex lock;
bool initialized;
// What the device broke with: from then on every call returns it, as a real one does.
Result broken = SUCCESS;
std::vector<std::unique_ptr<Context>> contexts;
thread_local Context* current_context;
std::map<Stream*, std::shared_ptr<Stream>> streams;
std::map<Context*, std::shared_ptr<Stream>> default_streams;
std::map<Event*, std::shared_ptr<Event>> events;
std::set<Module*> modules;
std::map<u8*, size_t> pinned;

bool tracing() {
    static const bool on = setting("EMULATOR_TRACE", 0) != 0;
    return on;
}

void __attribute__((format(printf, 1, 2))) say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("emulator: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

// Whether EMULATOR_POOLS is this word.
bool pools(const char* word) {
    const char* set = getenv("EMULATOR_POOLS");
    return set && !strcmp(set, word);
}

int devices() { return (int)setting("EMULATOR_DEVICES", 1); }

// The failure that EMULATOR_FAIL has for this call, if any; counts the calls.
Result planted(const std::string& call) {
    static std::map<std::string, u64> calls;
    const u64 number = ++calls[call];
    const char* plan = getenv("EMULATOR_FAIL");
    for (const char* part = plan; part && *part;) {
        const char* end = strchr(part, ',');
        const std::string text(part, end ? (size_t)(end - part) : strlen(part));
        char name[16];
        unsigned long long when;
        int code;
        if (sscanf(text.c_str(), "%15[a-z]:%llu:%d", name, &when, &code) != 3) {
            say("EMULATOR_FAIL: %s is not of the form launch:5:700", text.c_str());
            abort();
        }
        if (call == name && when == number) {
            say("%s %llu fails with %d, as EMULATOR_FAIL says", name, when, code);
            return (Result)code;
        }
        part = end ? end + 1 : nullptr;
    }
    return SUCCESS;
}

// Out of memory leaves a device as it was; what a launch, a copy or a wait breaks stays broken.
Result planted_to_stay(const char* call) {
    const Result result = planted(call);
    if (result != SUCCESS) broken = result;
    return result;
}

// Whether EMULATOR_OMIT leaves this call out, between whom it may name; counts the calls.
bool omitted(const std::string& call, const std::string& between = "") {
    static std::map<std::string, u64> calls;
    const char* parity = ++calls[call] % 2 ? ":odd" : ":even";
    const char* plan = getenv("EMULATOR_OMIT");
    return plan && (call == plan || call + parity == plan || call + ":" + between == plan);
}

// ---- streams --------------------------------------------------------------------------------------------------------

u32 random() {
    static u64 state = seed() * 0x9e3779b97f4a7c15ull | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (u32)(state >> 32);
}

void run_until(Stream& stream, u64 position) {
    while (stream.done < position && !stream.queue.empty()) {
        // Done only afterwards: what it waits for may look at this stream.
        const std::function<void()> operation = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (broken == SUCCESS) operation();
        ++stream.done;
    }
}

void run_all(Stream& stream) { run_until(stream, stream.enqueued()); }

template <class F> void each_stream(F visit) {
    for (auto& [handle, stream] : default_streams) visit(*stream);
    for (auto& [handle, stream] : streams) visit(*stream);
}

void run_everything() {
    each_stream([](Stream& stream) { run_all(stream); });
}

// The stream of a handle; null, and the special handles 1 and 2, mean the default one.
std::shared_ptr<Stream> find_stream(Stream* handle) {
    if ((uintptr_t)handle <= 2) {
        std::shared_ptr<Stream>& stream = default_streams[current_context];
        if (!stream) stream = std::make_shared<Stream>(Stream{current_context, true, {}});
        return stream;
    }
    const auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

// The default stream waits for all blocking ones, and they for it.
void order_with_default(Stream& stream) {
    if (!stream.blocking) return;
    each_stream([&](Stream& other) {
        if (&other != &stream && other.blocking && other.context == stream.context) run_all(other);
    });
}

Result enqueue(Stream& stream, std::function<void()> operation) {
    order_with_default(stream);
    stream.queue.push_back(std::move(operation));
    if (seed() == 0) {
        run_all(stream);
    } else if (random() % 8 == 0) {
        // Some stream goes on a little.
        const u32 chosen = random() % (u32)(streams.size() + default_streams.size());
        u32 number = 0;
        each_stream([&](Stream& one) {
            if (number++ == chosen) run_until(one, one.done + 1 + random() % 4);
        });
    }
    return SUCCESS;
}

// ---- checks ---------------------------------------------------------------------------------------------------------

// What every call begins with.
struct Entry {
    std::lock_guard<std::recursive_mutex> guard{lock};
    Result result;
    explicit Entry(bool needs_context = true) : result(!initialized ? NOT_INITIALIZED : broken != SUCCESS ? broken : needs_context && !current_context ? INVALID_CONTEXT : SUCCESS) {}
    bool failed() const { return result != SUCCESS; }
};

#define ENTER                 \
    const Entry entry;        \
    if (entry.failed()) return entry.result
#define ENTER_WITHOUT_CONTEXT  \
    const Entry entry(false);  \
    if (entry.failed()) return entry.result

bool range_ok(const char* call, const void* base, size_t bytes) {
    std::string message;
    if (bytes == 0 || inside(base, bytes, message)) return true;
    say("%s: %s", call, message.c_str());
    return false;
}

bool is_pinned(const void* base, size_t bytes) {
    auto found = pinned.upper_bound((u8*)base);
    if (found == pinned.begin()) return false;
    --found;
    return (const u8*)base + bytes <= found->first + found->second;
}

// What a copy is to find in pinned memory when its stream comes to it: what lay there at the call.
void check_unchanged(const void* from, const std::vector<u8>& at_call) {
    if (broken != SUCCESS || memcmp(from, at_call.data(), at_call.size()) == 0) return;
    say("a copy of %zu bytes: the host has changed them before they were copied", at_call.size());
    broken = ILLEGAL_ADDRESS;
}

// Ordinary memory as it is when a stream comes to a copy from it: it may be gone, and then nothing is left of what lay there.
std::vector<u8> pageable_now(const void* from, size_t bytes) {
    std::vector<u8> now(bytes, (u8)poison());
    const iovec to{now.data(), bytes}, there{(void*)from, bytes};
    if (process_vm_readv(getpid(), &to, 1, &there, 1, 0) != (ssize_t)bytes && errno != EFAULT) {
        say("EMULATOR_COHERENT: a process may not look into its own memory here: %s", strerror(errno));
        abort();
    }
    return now;
}

// A copy whose stream comes to it after its memory was freed is what a real device faults on.
void checked_copy(void* to, const void* from, size_t bytes, const void* device, const void* other_device) {
    for (const void* one : {device, other_device}) {
        if (one && !range_ok("a copy, when its stream comes to it", one, bytes)) {
            broken = ILLEGAL_ADDRESS;
            return;
        }
    }
    if (planted_to_stay("copy") != SUCCESS) return;
    copy(to, from, bytes);
}

// ---- launches -------------------------------------------------------------------------------------------------------

bool pointers_ok(const Kernel& kernel, void** values) {
    for (u32 i = 0; i < kernel.parameter_count; ++i) {
        if (!kernel.parameters[i].pointer) continue;
        const void* pointer = *(void**)values[i];
        std::string message;
        if (!pointer || inside(pointer, 0, message) || is_pinned(pointer, 0)) continue;
        say("%s: parameter %u is %p, which is no memory of the device", kernel.name, i, pointer);
        return false;
    }
    return true;
}

Result check_launch(const Function& function, dim3 grid, dim3 shape, u32 bytes) {
    const u64 threads = (u64)shape.x * shape.y * shape.z;
    const char* name = function.kernel->name;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        say("%s: a grid of (%u,%u,%u) blocks", name, grid.x, grid.y, grid.z);
    } else if (threads == 0 || shape.x > 1024 || shape.y > 1024 || shape.z > 64 || threads > 1024) {
        say("%s: a block of (%u,%u,%u) threads", name, shape.x, shape.y, shape.z);
    } else if (threads > function.kernel->most_threads) {
        say("%s: %llu threads, but its __launch_bounds__ are %u", name, threads, function.kernel->most_threads);
    } else if (bytes > function.most_dynamic_bytes) {
        say("%s: %u bytes of dynamic shared memory, but its attribute allows %u", name, bytes, function.most_dynamic_bytes);
    } else {
        return SUCCESS;
    }
    return INVALID_VALUE;
}

Result launch_on(Function* function, dim3 grid, dim3 shape, u32 bytes, Stream* handle, void** values) {
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!function || !stream) return INVALID_HANDLE;
    const Result limits = check_launch(*function, grid, shape, bytes);
    if (limits != SUCCESS) return limits;
    const Kernel& kernel = *function->kernel;
    if (!values && kernel.parameter_count != 0) return INVALID_VALUE;
    // The caller's values are gone when the stream comes to the launch.
    auto copies = std::make_shared<std::vector<std::vector<u64>>>();
    for (u32 i = 0; i < kernel.parameter_count; ++i) {
        copies->emplace_back((kernel.parameters[i].bytes + 15) / 16 * 2);
        memcpy(copies->back().data(), values[i], kernel.parameters[i].bytes);
    }
    return enqueue(*stream, [&kernel, grid, shape, bytes, copies] {
        if (planted_to_stay("launch") != SUCCESS) return;
        std::vector<void*> pointers;
        for (auto& one : *copies) pointers.push_back(one.data());
        if (!pointers_ok(kernel, pointers.data())) {
            broken = ILLEGAL_ADDRESS;
            return;
        }
        if (tracing()) say("%s: (%u,%u,%u) blocks of (%u,%u,%u), %u bytes", kernel.name, grid.x, grid.y, grid.z, shape.x, shape.y, shape.z, bytes);
        watch_faults();
        launch(kernel, grid, shape, bytes, pointers.data());
    });
}

// ---- images ---------------------------------------------------------------------------------------------------------

template <class T> T field(const void* image, size_t offset) {
    T value;
    memcpy(&value, (const char*)image + offset, sizeof value);
    return value;
}

// The bytes of a cubin (an ELF file), of a fatbin, or of PTX (a text); 0 when it is none of these.
size_t image_bytes(const void* image) {
    constexpr u32 FATBIN = 0xba55ed50;
    if (memcmp(image, "\177ELF", 4) == 0) {
        // The table of sections comes last, or the last section does.
        const u64 table = field<u64>(image, 40);
        const u32 each = field<u16>(image, 58);
        const u32 count = field<u16>(image, 60);
        u64 end = table + (u64)each * count;
        constexpr u32 NO_BITS = 8;
        for (u32 i = 0; i < count; ++i) {
            const u64 at = table + (u64)i * each;
            if (field<u32>(image, at + 4) != NO_BITS) end = std::max(end, field<u64>(image, at + 24) + field<u64>(image, at + 32));
        }
        return end;
    }
    if (field<u32>(image, 0) == FATBIN) return field<u16>(image, 6) + field<u64>(image, 8);
    return strstr((const char*)image, ".version") ? strlen((const char*)image) : 0;
}

void* new_stream(bool blocking) {
    static u64 made = 0;
    auto stream = std::make_shared<Stream>(Stream{current_context, blocking, {}});
    stream->number = ++made;
    streams[stream.get()] = stream;
    return stream.get();
}

Result allocate_for(u64* pointer, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    const Result failure = planted("alloc");
    if (failure != SUCCESS) return failure;
    void* found = allocate(bytes, current_context->device);
    if (!found) {
        // Frees may still be on their way.
        run_everything();
        found = allocate(bytes, current_context->device);
    }
    if (tracing()) say("allocation of %zu bytes at %p", bytes, found);
    *pointer = (u64)found;
    return found ? SUCCESS : OUT_OF_MEMORY;
}

}  // namespace
