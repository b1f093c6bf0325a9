// What the kernels of every package share. A function marked HOST_DEVICE is compiled for the CPU by the C++ compiler, and
// for CPU and GPU by nvcc.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

HOST_DEVICE float smaller(float a, float b) { return a < b ? a : b; }

HOST_DEVICE float larger(float a, float b) { return a > b ? a : b; }

HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// NaN and infinities differ from themselves once subtracted.
HOST_DEVICE bool is_finite(float value) { return value - value == 0.0f; }
