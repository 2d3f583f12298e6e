// A libcuda.so.1 whose device is the emulator: the entry points that cudarc touches, with their checks.
//
// Streams are queues. With EMULATOR_SEED=0 every operation is done at once; with any other seed it is done when something
// waits for it, or at random before, so that a missing event or synchronisation shows: pageable host memory is read or
// written at the call as CUDA does, pinned memory when the stream comes to it. Until then pinned memory that is written holds
// poison, and pinned memory that is read may not change.
//
// What goes wrong is printed on stderr besides the result, since a result is one number. Environment:
//   EMULATOR_MEMORY   bytes of a device, 4 GiB by default
//   EMULATOR_DEVICES  how many there are, 1 by default
//   EMULATOR_FIRST    number of the first one on its machine, 0 by default: a launcher that binds GPUs hides those before
//   EMULATOR_FAIL     call:n:code,… the n-th (from 1) launch, alloc, copy, sync or load (of an image) fails with the code; "launch:5:700"
//   EMULATOR_POOLS    none: there is no pool of memory, and the attribute says so; broken: the attribute says that there is one
//   EMULATOR_COHERENT 1: a copy from pageable memory to the device reads it as late as one from pinned memory does
//   EMULATOR_OMIT     wait or sync: a stream, or the host, goes on without waiting for an event, as if the program did not ask
//                     for it; wait:odd and wait:even: every other time; wait:3-1: the third stream that was made for the first
//   EMULATOR_TRUNCATE 1: products of tensor cores are added in another order and cut off, as hardware does: collectives.cpp
//   EMULATOR_TRACE    1 prints every launch, copy, allocation and wait of the host
#include "streams.h"

#define API extern "C" __attribute__((visibility("default"))) Result

// ---- the device -----------------------------------------------------------------------------------------------------

API cuInit(unsigned) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (devices() == 0) return NO_DEVICE;
    initialized = true;
    while ((int)contexts.size() < devices()) contexts.push_back(std::make_unique<Context>(Context{(int)contexts.size()}));
    return SUCCESS;
}
API cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
// NVRTC looks for this one in the driver and does not bear its absence.
API cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }
API cuDeviceGetCount(int* count) {
    ENTER_WITHOUT_CONTEXT;
    return *count = devices(), SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
    ENTER_WITHOUT_CONTEXT;
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
API cuDeviceGetName(char* name, int bytes, int) { return snprintf(name, (size_t)bytes, "CUDA emulator"), SUCCESS; }
API cuDeviceGetUuid_v2(char* uuid, int device) {
    memcpy(uuid, "CUDA emulator 0", 16);
    uuid[15] = (char)(setting("EMULATOR_FIRST", 0) + (u64)device);
    return SUCCESS;
}
API cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = capacity(), SUCCESS; }
API cuDeviceCanAccessPeer(int* can, int, int) { return *can = 1, SUCCESS; }
API cuCtxEnablePeerAccess(Context*, unsigned) { return SUCCESS; }

API cuDeviceGetAttribute(int* value, int attribute, int device) {
    ENTER_WITHOUT_CONTEXT;
    switch (attribute) {
        case 1: *value = 1024; break;                         // MAX_THREADS_PER_BLOCK
        case 2: case 3: *value = 1024; break;                 // MAX_BLOCK_DIM_X, Y
        case 4: *value = 64; break;                           // MAX_BLOCK_DIM_Z
        case 5: *value = 0x7fffffff; break;                   // MAX_GRID_DIM_X
        case 6: case 7: *value = 65535; break;                // MAX_GRID_DIM_Y, Z
        case 8: *value = DYNAMIC_BYTES_DEFAULT; break;        // MAX_SHARED_MEMORY_PER_BLOCK
        case 9: *value = 64 << 10; break;                     // TOTAL_CONSTANT_MEMORY
        case 10: *value = 32; break;                          // WARP_SIZE
        case 12: case 82: *value = 65536; break;              // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
        case 13: case 36: *value = 1000000; break;            // CLOCK_RATE, MEMORY_CLOCK_RATE in kHz
        case 16: *value = MULTIPROCESSORS; break;             // MULTIPROCESSOR_COUNT
        case 19: case 31: case 41: *value = 1; break;         // CAN_MAP_HOST_MEMORY, CONCURRENT_KERNELS, UNIFIED_ADDRESSING
        case 33: *value = device; break;                      // PCI_BUS_ID
        case 37: *value = 256; break;                         // GLOBAL_MEMORY_BUS_WIDTH
        case 38: *value = 4 << 20; break;                     // L2_CACHE_SIZE
        case 39: *value = 2048; break;                        // MAX_THREADS_PER_MULTIPROCESSOR
        case 40: *value = 2; break;                           // ASYNC_ENGINE_COUNT
        case 75: *value = (int)setting("EMULATOR_CAPABILITY", 80) / 10; break;
        case 76: *value = (int)setting("EMULATOR_CAPABILITY", 80) % 10; break;
        case 81: *value = DYNAMIC_BYTES_AT_MOST + 1024; break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 97: *value = DYNAMIC_BYTES_AT_MOST; break;       // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 106: *value = 32; break;                         // MAX_BLOCKS_PER_MULTIPROCESSOR
        case 111: *value = 1024; break;                       // RESERVED_SHARED_MEMORY_PER_BLOCK
        case 115: *value = !pools("none"); break;             // MEMORY_POOLS_SUPPORTED
        default: *value = 0;
    }
    return SUCCESS;
}

// ---- contexts -------------------------------------------------------------------------------------------------------

API cuDevicePrimaryCtxRetain(Context** context, int device) {
    ENTER_WITHOUT_CONTEXT;
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    return *context = contexts[(size_t)device].get(), SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(Context* context) {
    ENTER_WITHOUT_CONTEXT;
    return current_context = context, SUCCESS;
}
API cuCtxGetCurrent(Context** context) {
    ENTER_WITHOUT_CONTEXT;
    return *context = current_context, SUCCESS;
}
API cuCtxGetDevice(int* device) {
    ENTER;
    return *device = current_context->device, SUCCESS;
}
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetLimit(size_t* value, int) { return *value = 0, SUCCESS; }
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetCacheConfig(int* config) { return *config = 0, SUCCESS; }
API cuCtxSetCacheConfig(int) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = *greatest = 0, SUCCESS; }
API cuCtxSynchronize() {
    ENTER;
    run_everything();
    planted_to_stay("sync");
    return broken;
}

// ---- streams and events ---------------------------------------------------------------------------------------------

API cuStreamCreate(void** stream, unsigned flags) {
    ENTER;
    constexpr unsigned NON_BLOCKING = 1;
    return *stream = new_stream(!(flags & NON_BLOCKING)), SUCCESS;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(Stream* handle) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    const auto found = streams.find(handle);
    if (found == streams.end()) return INVALID_HANDLE;
    run_all(*found->second);
    streams.erase(found);
    return broken;
}
API cuStreamSynchronize(Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (tracing()) say("the host waits for a stream");
    run_all(*stream);
    planted_to_stay("sync");
    return broken;
}
API cuStreamQuery(Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    // Who asks again and again must see the end.
    run_until(*stream, stream->done + 1);
    return broken != SUCCESS ? broken : stream->queue.empty() ? SUCCESS : NOT_READY;
}
API cuStreamIsCapturing(Stream*, int* status) { return *status = 0, SUCCESS; }
API cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream || !events.count(event)) return INVALID_HANDLE;
    if (!event->stream || omitted("wait", std::to_string(stream->number) + "-" + std::to_string(event->stream->number))) return SUCCESS;
    return enqueue(*stream, [other = event->stream, position = event->position] { run_until(*other, position); });
}
API cuLaunchHostFunc(Stream* handle, void (*call)(void*), void* argument) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    return enqueue(*stream, [call, argument] { call(argument); });
}

// Runs all streams to their end: nothing of CUDA's, but what a device does by itself. For nccl.cpp.
API cuEmulatorGoOn() {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    run_everything();
    return broken;
}

API cuEventCreate(Event** event, unsigned) {
    ENTER;
    auto made = std::make_shared<Event>();
    events[made.get()] = made;
    return *event = made.get(), SUCCESS;
}
API cuEventRecord(Event* event, Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream || !events.count(event)) return INVALID_HANDLE;
    event->stream = stream;
    event->position = stream->enqueued() + 1;
    return enqueue(*stream, [shared = events[event]] { shared->time = std::chrono::steady_clock::now(); });
}
API cuEventSynchronize(Event* event) {
    ENTER;
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->stream && !omitted("sync")) {
        if (tracing()) say("the host waits for an event");
        run_until(*event->stream, event->position);
    }
    planted_to_stay("sync");
    return broken;
}
API cuEventQuery(Event* event) {
    ENTER;
    if (!events.count(event)) return INVALID_HANDLE;
    if (!event->stream) return SUCCESS;
    run_until(*event->stream, std::min(event->position, event->stream->done + 1));
    return broken != SUCCESS ? broken : event->stream->done >= event->position ? SUCCESS : NOT_READY;
}
API cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    ENTER;
    if (!events.count(start) || !events.count(end) || !start->stream || !end->stream) return INVALID_HANDLE;
    if (start->stream->done < start->position || end->stream->done < end->position) return NOT_READY;
    return *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count(), SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, Event* start, Event* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }
API cuEventDestroy_v2(Event* event) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    return events.erase(event) ? SUCCESS : INVALID_HANDLE;
}

// No profiler watches.
API cuProfilerStart() { ENTER; return broken; }
API cuProfilerStop() { ENTER; return broken; }

// ---- memory ---------------------------------------------------------------------------------------------------------

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER;
    // What was freed in a stream's order counts as free.
    run_everything();
    *total = capacity();
    *free = *total - allocated(current_context->device);
    return broken;
}
API cuMemAlloc_v2(u64* pointer, size_t bytes) {
    ENTER;
    return allocate_for(pointer, bytes);
}
API cuMemAllocAsync(u64* pointer, size_t bytes, Stream* handle) {
    ENTER;
    if (pools("none") || pools("broken")) return NOT_SUPPORTED;
    if (!find_stream(handle)) return INVALID_HANDLE;
    return allocate_for(pointer, bytes);
}
API cuMemAllocFromPoolAsync(u64* pointer, size_t bytes, void*, Stream* handle) { return cuMemAllocAsync(pointer, bytes, handle); }
API cuMemFree_v2(u64 pointer) {
    ENTER;
    run_everything();
    if (release((void*)pointer)) return broken;
    say("cuMemFree: nothing is allocated at %p", (void*)pointer);
    return INVALID_VALUE;
}
API cuMemFreeAsync(u64 pointer, Stream* handle) {
    ENTER;
    if (pools("none") || pools("broken")) {
        say("cuMemFreeAsync: there is no pool of memory");
        return NOT_SUPPORTED;
    }
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!range_ok("cuMemFreeAsync", (void*)pointer, 1)) return INVALID_VALUE;
    return enqueue(*stream, [pointer] {
        if (release((void*)pointer)) return;
        say("cuMemFreeAsync: nothing is allocated at %p", (void*)pointer);
        broken = ILLEGAL_ADDRESS;
    });
}
API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    ENTER;
    if (bytes == 0) return INVALID_VALUE;
    *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*pointer) return OUT_OF_MEMORY;
    fill(*pointer, poison(), bytes);
    pinned[(u8*)*pointer] = bytes;
    return SUCCESS;
}
API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }
API cuMemFreeHost(void* pointer) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    run_everything();
    if (!pinned.erase((u8*)pointer)) return INVALID_VALUE;
    free(pointer);
    return broken;
}
API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    ENTER;
    return pinned[(u8*)pointer] = bytes, SUCCESS;
}
API cuMemHostUnregister(void* pointer) {
    ENTER;
    run_everything();
    return pinned.erase((u8*)pointer) ? broken : INVALID_VALUE;
}
API cuMemHostGetDevicePointer_v2(u64* device, void* pointer, unsigned) {
    ENTER;
    if (!is_pinned(pointer, 0)) return INVALID_VALUE;
    return *device = (u64)pointer, SUCCESS;
}

API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!range_ok("cuMemcpyHtoDAsync", (void*)to, bytes)) return INVALID_VALUE;
    if (tracing()) say("%zu bytes from the host to %p", bytes, (void*)to);
    auto staged = std::make_shared<std::vector<u8>>((const u8*)from, (const u8*)from + bytes);
    if (is_pinned(from, bytes)) {
        return enqueue(*stream, [=] {
            check_unchanged(from, *staged);
            checked_copy((void*)to, from, bytes, (void*)to, nullptr);
        });
    }
    if (setting("EMULATOR_COHERENT", 0)) {
        return enqueue(*stream, [=] {
            check_unchanged(pageable_now(from, bytes).data(), *staged);
            checked_copy((void*)to, staged->data(), bytes, (void*)to, nullptr);
        });
    }
    return enqueue(*stream, [=] { checked_copy((void*)to, staged->data(), bytes, (void*)to, nullptr); });
}
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!range_ok("cuMemcpyDtoHAsync", (void*)from, bytes)) return INVALID_VALUE;
    if (tracing()) say("%zu bytes from %p to the host", bytes, (void*)from);
    const bool waits = !is_pinned(to, bytes);
    if (!waits) fill(to, poison(), bytes);
    if (waits && tracing()) say("the host waits for a stream");
    enqueue(*stream, [=] { checked_copy(to, (void*)from, bytes, (void*)from, nullptr); });
    if (waits) run_all(*stream);
    return broken;
}
API cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!range_ok("cuMemcpyDtoDAsync", (void*)to, bytes) || !range_ok("cuMemcpyDtoDAsync", (void*)from, bytes)) return INVALID_VALUE;
    if (tracing()) say("%zu bytes from %p to %p", bytes, (void*)from, (void*)to);
    return enqueue(*stream, [=] { checked_copy((void*)to, (void*)from, bytes, (void*)to, (void*)from); });
}
API cuMemcpyPeerAsync(u64 to, Context*, u64 from, Context*, size_t bytes, Stream* stream) { return cuMemcpyDtoDAsync_v2(to, from, bytes, stream); }
// The forms that wait go through the default stream, which does not wait for streams of their own.
API cuMemcpyHtoD_v2(u64 to, const void* from, size_t bytes) {
    const Result result = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
    return result != SUCCESS ? result : cuStreamSynchronize(nullptr);
}
API cuMemcpyDtoH_v2(void* to, u64 from, size_t bytes) {
    const Result result = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
    return result != SUCCESS ? result : cuStreamSynchronize(nullptr);
}
API cuMemcpyDtoD_v2(u64 to, u64 from, size_t bytes) {
    const Result result = cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
    return result != SUCCESS ? result : cuStreamSynchronize(nullptr);
}
API cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, Stream* handle) {
    ENTER;
    const std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (!range_ok("cuMemsetD8Async", (void*)to, bytes)) return INVALID_VALUE;
    return enqueue(*stream, [=] {
        if (range_ok("a memset, when its stream comes to it", (void*)to, bytes)) fill((void*)to, value, bytes);
        else broken = ILLEGAL_ADDRESS;
    });
}
API cuMemsetD8_v2(u64 to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }

// One pool, of which nothing is kept back.
API cuDeviceGetDefaultMemPool(void** pool, int device) { return *pool = contexts[(size_t)device].get(), SUCCESS; }
API cuDeviceGetMemPool(void** pool, int device) { return *pool = contexts[(size_t)device].get(), SUCCESS; }
API cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    constexpr int FIRST_OF_64_BITS = 4;
    if (attribute < FIRST_OF_64_BITS) return *(int*)value = 1, SUCCESS;
    return *(u64*)value = allocated(((Context*)pool)->device), SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- modules and launches -------------------------------------------------------------------------------------------

API cuModuleLoadData(Module** module, const void* image) {
    ENTER;
    const size_t bytes = image_bytes(image);
    if (bytes == 0) return INVALID_IMAGE;
    const Result failure = planted("load");
    if (failure != SUCCESS) return failure;
    *module = new Module{std::string((const char*)image, bytes)};
    modules.insert(*module);
    return SUCCESS;
}
API cuModuleUnload(Module* module) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (!modules.erase(module)) return INVALID_HANDLE;
    delete module;
    return SUCCESS;
}
API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER;
    // What the image holds is not run, but it has to hold it.
    if (!modules.count(module)) return INVALID_HANDLE;
    if (module->image.find(name) == std::string::npos) return NOT_FOUND;
    const Kernel* kernel = find_kernel(name);
    if (!kernel) {
        say("no kernel %s among those that the emulator was built with", name);
        return NOT_FOUND;
    }
    // Handles stay valid as long as the process: there are few.
    static std::deque<Function> functions;
    functions.push_back({kernel});
    return *function = &functions.back(), SUCCESS;
}
API cuModuleGetGlobal_v2(u64*, size_t*, Module*, const char*) { return NOT_FOUND; }
API cuFuncGetAttribute(int* value, int attribute, Function* function) {
    ENTER;
    switch (attribute) {
        case 0: *value = (int)function->kernel->most_threads; break;
        case 8: *value = (int)function->most_dynamic_bytes; break;
        default: *value = 0;  // registers, local and static shared memory are the compiler's business
    }
    return SUCCESS;
}
API cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER;
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, PREFERRED_SHARED_MEMORY_CARVEOUT = 9;
    if (attribute == PREFERRED_SHARED_MEMORY_CARVEOUT && tracing()) say("%s: %d %% shared memory", function->kernel->name, value);
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value < 0 || value > (int)DYNAMIC_BYTES_AT_MOST) return INVALID_VALUE;
    return function->most_dynamic_bytes = (u32)value, SUCCESS;
}
API cuFuncSetCacheConfig(Function*, int) { return SUCCESS; }
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int threads, size_t bytes, unsigned) {
    ENTER;
    if (threads <= 0) return INVALID_VALUE;
    const int by_memory = (int)((DYNAMIC_BYTES_AT_MOST + 1024) / (bytes + 1024));
    *blocks = (u32)threads > function->kernel->most_threads ? 0 : std::min({2048 / threads, by_memory, 32});
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t bytes) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, bytes, 0);
}
API cuLaunchKernel(Function* function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 bytes, Stream* stream, void** values, void** extra) {
    ENTER;
    if (extra) return NOT_SUPPORTED;
    return launch_on(function, {gx, gy, gz}, {bx, by, bz}, bytes, stream, values);
}

// ---- errors ---------------------------------------------------------------------------------------------------------

API cuGetErrorName(int code, const char** name) {
    const auto found = std::find_if(std::begin(CODES), std::end(CODES), [=](const Code& one) { return one.code == code; });
    *name = found == std::end(CODES) ? nullptr : found->name;
    return *name ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorString(int code, const char** text) {
    const auto found = std::find_if(std::begin(CODES), std::end(CODES), [=](const Code& one) { return one.code == code; });
    *text = found == std::end(CODES) ? nullptr : found->text;
    return *text ? SUCCESS : INVALID_VALUE;
}
