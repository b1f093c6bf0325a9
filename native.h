// What the kernels of every package share. A function marked HOST_DEVICE is compiled for the CPU by the C++ compiler, and
// for CPU and GPU by nvcc.
#pragma once

#include <atomic>
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

// Whether a block of rows x columns elements, at an offset, lies inside a memory of so many. A product of huge numbers
// would wrap around to a small one, so nothing is multiplied.
HOST_DEVICE bool fits(int64_t offset, int64_t rows, int64_t columns, int64_t elements) {
    if (offset < 0 || rows < 0 || columns < 0 || offset > elements) return false;
    return columns == 0 || rows <= (elements - offset) / columns;
}

// Work that may run out of memory, in any number of threads. An exception that left an OpenMP region, or a function that
// Python calls, would end the process: here it is noted, and the work that remains is skipped.
class Guard {
public:
    template <class Work>
    void run(Work&& work) noexcept {
        if (failed.load(std::memory_order_relaxed)) return;
        try {
            work();
        } catch (...) {  // std::bad_alloc and std::length_error, for nothing else is thrown
            failed.store(true, std::memory_order_relaxed);
        }
    }

    // What the function that Python called returns: 0, or 1 if memory ran out.
    int result() const { return failed.load() ? 1 : 0; }

private:
    std::atomic<bool> failed{false};
};
