// What the kernels of a step tell each other and the host. kernels/src/cuda/runtime/status.rs has the same fields in the same order.
#pragma once
#include "device.cuh"

struct Status {
    // Rows with a value that is not finite.
    u32 bad_rows;
    // A list of active features had no room: nothing after it is valid, and the step is made again on the dense path. Set when
    // the batch is held, too: it then stops where such a step stops.
    u32 overflow;
    // Whether the update may be made.
    u32 ok;
    // The batch before was refused, and the host has not heard of it yet: this one changes nothing and is made again.
    u32 held;
    // Σ_t #{f : a_tf > 0}.
    u64 active;
    // Σ_t ‖x − x̂‖².
    double squared_error;
    // Σ_t Σ_f a_tf ‖W_dec[f]‖.
    double l1;
    // ‖∂L‖₂ before clipping.
    double gradient_norm;
};

// Whether a batch changes nothing. Without a backward pass status.ok was never set: what counts is that nothing was refused.
static __device__ __forceinline__ bool refused(const Status* status, u32 with_gradient) {
    return status->overflow || status->bad_rows > 0 || (with_gradient && !status->ok);
}
