// The kernels of a library, by name: each registers itself when the library is loaded.
#include "machine.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

namespace {
Kernel*& registered() {
    static Kernel* list = nullptr;
    return list;
}
}  // namespace

void add_kernel(Kernel* one) {
    if (find_kernel(one->name)) {
        fprintf(stderr, "emulator: two kernels are named %s\n", one->name);
        abort();
    }
    one->next = registered();
    registered() = one;
}

const Kernel* find_kernel(const char* name) {
    for (Kernel* one = registered(); one; one = one->next) {
        if (strcmp(one->name, name) == 0) return one;
    }
    return nullptr;
}

}  // namespace emulator
