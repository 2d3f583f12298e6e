// The activation function, ReLU: a = p where a pre-activation p is above 0, else a = 0; ∂a/∂p = 1 where a is active, else 0.
// Whatever asks whether a pair is active asks it here.
#pragma once
#include "device.cuh"

// By its pre-activation or its activation.
__device__ __forceinline__ bool is_active(float pre) { return pre > 0; }

__device__ __forceinline__ float activate(float pre) { return is_active(pre) ? pre : 0.0f; }

// The gradient in the pre-activation from that in the activation.
__device__ __forceinline__ float activation_gradient(float a, float gradient) { return is_active(a) ? gradient : 0.0f; }
