// The functions of NCCL that the trainer calls, between processes that each have an emulated device: a part of the driver's
// library, which is found under the name libnccl.so.2 too.
//
// Every pair of ranks has a Unix socket. A group of messages is an operation of its stream: it is done when the stream comes to
// it, and to wait for the stream is to wait for the other ranks. As with NCCL, one that is gone is waited for until the
// communicator is aborted. Each message begins with its length, so that two ranks that disagree about it are caught.
//
// A device goes on by itself, while the queues of the emulator stand still until somebody waits for them: with a seed other than
// 0 a thread runs them to their end now and then, for another rank may wait for what stands there while the host does something else.
#include "machine.h"
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace emulator;

extern "C" int cuLaunchHostFunc(void* stream, void (*call)(void*), void* argument);
extern "C" int cuEmulatorGoOn();

namespace {

// The numbers of nccl.h.
enum Result : int { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };

constexpr int VERSION = 22703;
constexpr int BYTES = 1;  // ncclUint8
constexpr int LOOK_MS = 20;

struct Id {
    char name[128];
};

struct Communicator {
    int rank;
    std::vector<int> sockets;  // by rank; none to itself
    std::atomic<bool> aborted{false};
    std::atomic<int> error{SUCCESS};
};

struct Message {
    u8* at;
    size_t bytes;
    int peer;
};

// One direction of a pair: a length, then as many bytes.
struct Transfer {
    Message message;
    u64 length;
    size_t done = 0;

    bool complete() const { return done == sizeof length + message.bytes; }
    // The next bytes, and how many.
    u8* next(size_t& left) {
        if (done < sizeof length) {
            left = sizeof length - done;
            return (u8*)&length + done;
        }
        left = sizeof length + message.bytes - done;
        return message.at + (done - sizeof length);
    }
};

// What was begun between ncclGroupStart and ncclGroupEnd.
struct Group {
    Communicator* communicator;
    void* stream;
    std::vector<Message> sent, received;
};

thread_local int depth;
thread_local std::unique_ptr<Group> open_group;

void __attribute__((format(printf, 1, 2))) say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("emulated NCCL: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

sockaddr_un address(const Id& id, int rank, socklen_t& bytes) {
    sockaddr_un to = {};
    to.sun_family = AF_UNIX;
    // An abstract name: it leaves no file, and ends with the process.
    const int length = snprintf(to.sun_path + 1, sizeof to.sun_path - 1, "%.80s-%d", id.name, rank);
    bytes = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)length);
    return to;
}

// Moves what can be moved without waiting; false when the other side is gone.
bool advance(int socket, Transfer& transfer, bool sends) {
    while (!transfer.complete()) {
        size_t left;
        u8* at = transfer.next(left);
        const ssize_t moved = sends ? send(socket, at, left, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(socket, at, left, MSG_DONTWAIT);
        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return true;
        if (moved <= 0) return false;
        transfer.done += (size_t)moved;
        if (!sends && transfer.done == sizeof transfer.length && transfer.length != transfer.message.bytes) {
            say("rank %d sends %llu bytes where %zu are expected", transfer.message.peer, transfer.length, transfer.message.bytes);
            abort();
        }
    }
    return true;
}

// The messages of a direction, by rank, in their order.
std::vector<std::deque<Transfer>> queues(const std::vector<Message>& messages, size_t ranks) {
    std::vector<std::deque<Transfer>> by_rank(ranks);
    for (const Message& message : messages) by_rank[(size_t)message.peer].push_back({message, (u64)message.bytes});
    return by_rank;
}

bool check_memory(const std::vector<Message>& messages) {
    for (const Message& message : messages) {
        std::string text;
        if (inside(message.at, message.bytes, text)) continue;
        say("%s", text.c_str());
        return false;
    }
    return true;
}

// What a stream does when it comes to a group.
void run(void* argument) {
    const std::unique_ptr<Group> group((Group*)argument);
    Communicator& own = *group->communicator;
    if (!check_memory(group->sent) || !check_memory(group->received)) abort();
    std::vector<std::deque<Transfer>> directions[2] = {queues(group->received, own.sockets.size()), queues(group->sent, own.sockets.size())};
    while (!own.aborted) {
        std::vector<pollfd> waits;
        for (int sends = 0; sends < 2; ++sends) {
            for (size_t peer = 0; peer < own.sockets.size(); ++peer) {
                std::deque<Transfer>& queue = directions[sends][peer];
                bool there = true;
                while (there && !queue.empty()) {
                    there = advance(own.sockets[peer], queue.front(), sends != 0);
                    if (!there || !queue.front().complete()) break;
                    queue.pop_front();
                }
                if (!there) own.error = REMOTE_ERROR;
                if (!queue.empty()) waits.push_back({there ? own.sockets[peer] : -1, (short)(sends ? POLLOUT : POLLIN), 0});
            }
        }
        if (waits.empty()) return;
        poll(waits.data(), waits.size(), LOOK_MS);
    }
}

// Lets the device go on while the host does something else.
void go_on_by_itself() {
    static std::atomic<bool> begun{false};
    if (seed() == 0 || begun.exchange(true)) return;
    std::thread([] {
        while (cuEmulatorGoOn() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(LOOK_MS));
    }).detach();
}

int listen_as(const Id& id, int rank) {
    socklen_t bytes;
    const sockaddr_un own = address(id, rank, bytes);
    const int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listening < 0 || bind(listening, (const sockaddr*)&own, bytes) != 0 || listen(listening, 64) != 0) return -1;
    return listening;
}

// The socket to a rank below, which may not listen yet.
int connect_to(const Id& id, int rank, int own) {
    socklen_t bytes;
    const sockaddr_un to = address(id, rank, bytes);
    for (;;) {
        const int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (made < 0) return -1;
        if (connect(made, (const sockaddr*)&to, bytes) == 0) return send(made, &own, sizeof own, MSG_NOSIGNAL) == sizeof own ? made : -1;
        close(made);
        std::this_thread::sleep_for(std::chrono::milliseconds(LOOK_MS));
    }
}

Result begin(Communicator* communicator, void* stream, Message message, bool sends) {
    if (depth == 0 || message.peer < 0 || message.peer >= (int)communicator->sockets.size()) return INVALID_USAGE;
    if (message.peer == communicator->rank) return INVALID_ARGUMENT;
    if (!open_group) open_group.reset(new Group{communicator, stream, {}, {}});
    if (open_group->communicator != communicator || open_group->stream != stream) return INVALID_USAGE;
    (sends ? open_group->sent : open_group->received).push_back(message);
    return SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result

API ncclGetVersion(int* version) { return *version = VERSION, SUCCESS; }
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int code) {
    switch (code) {
        case SUCCESS: return "no error";
        case SYSTEM_ERROR: return "unhandled system error";
        case INVALID_ARGUMENT: return "invalid argument";
        case INVALID_USAGE: return "invalid usage";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        default: return "unknown result code";
    }
}
API ncclGetUniqueId(Id* id) {
    static std::atomic<int> made{0};
    *id = {};
    const long long now = std::chrono::steady_clock::now().time_since_epoch().count();
    snprintf(id->name, sizeof id->name, "emulated-nccl-%d-%lld-%d", (int)getpid(), now, made++);
    return SUCCESS;
}
API ncclCommInitRank(Communicator** communicator, int ranks, Id id, int rank) {
    const int listening = listen_as(id, rank);
    if (listening < 0) return SYSTEM_ERROR;
    auto* own = new Communicator{rank, std::vector<int>((size_t)ranks, -1)};
    for (int other = 0; other < rank; ++other) own->sockets[(size_t)other] = connect_to(id, other, rank);
    for (int above = rank + 1; above < ranks; ++above) {
        const int made = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
        int other;
        if (made < 0 || recv(made, &other, sizeof other, MSG_WAITALL) != sizeof other || other <= rank || other >= ranks) return SYSTEM_ERROR;
        own->sockets[(size_t)other] = made;
    }
    close(listening);
    go_on_by_itself();
    return *communicator = own, SUCCESS;
}
API ncclCommGetAsyncError(Communicator* communicator, int* error) { return *error = communicator->error, SUCCESS; }
// Handles stay as long as the process: a stream may still come to one.
API ncclCommAbort(Communicator* communicator) {
    communicator->aborted = true;
    for (const int socket : communicator->sockets) {
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
    }
    return SUCCESS;
}
API ncclCommDestroy(Communicator* communicator) {
    const int result = cuEmulatorGoOn();
    ncclCommAbort(communicator);
    return result == 0 ? SUCCESS : SYSTEM_ERROR;
}
API ncclGroupStart() { return ++depth, SUCCESS; }
API ncclGroupEnd() {
    if (depth == 0) return INVALID_USAGE;
    if (--depth > 0 || !open_group) return SUCCESS;
    void* const stream = open_group->stream;
    return cuLaunchHostFunc(stream, run, open_group.release()) == 0 ? SUCCESS : SYSTEM_ERROR;
}
API ncclSend(void* from, size_t count, int type, int peer, Communicator* communicator, void* stream) {
    return type == BYTES ? begin(communicator, stream, {(u8*)from, count, peer}, true) : INVALID_ARGUMENT;
}
API ncclRecv(void* to, size_t count, int type, int peer, Communicator* communicator, void* stream) {
    return type == BYTES ? begin(communicator, stream, {(u8*)to, count, peer}, false) : INVALID_ARGUMENT;
}
