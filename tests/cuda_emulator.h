// Enough of CUDA to run this project's kernels on a CPU, one real thread for each thread of a block.
// tests/test_cuda_sources.py rewrites launches and dynamic shared memory, and compiles the .cu files against this.
#pragma once

#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static  // blocks run one after the other

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
    std::memset(data, value, bytes);
    return cudaSuccess;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Waits for all threads that have not left.
class Barrier {
public:
    void reset(int count) { expected_ = count; }

    void wait() {
        std::unique_lock lock(mutex_);
        const int generation = generation_;
        if (++arrived_ == expected_) open();
        else opened_.wait(lock, [&] { return generation != generation_; });
    }

    void leave() {
        std::lock_guard lock(mutex_);
        if (arrived_ == --expected_ && expected_ > 0) open();
    }

private:
    void open() {
        arrived_ = 0;
        ++generation_;
        opened_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable opened_;
    int expected_ = 0, arrived_ = 0, generation_ = 0;
};

inline Barrier in_block, between_blocks;
inline std::vector<char> dynamic_shared;

template <class Body>
void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Body body) {
    dynamic_shared.assign(shared_bytes, 0x5a);  // as undefined as on a GPU
    between_blocks.reset(block.x);
    const auto run_thread = [&](unsigned index) {
        threadIdx = dim3(index, 0, 0);
        blockDim = block;
        gridDim = grid;
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                if (index == 0) in_block.reset(block.x);
                between_blocks.wait();
                blockIdx = dim3(x, y, 0);
                body();
                in_block.leave();
                between_blocks.wait();
            }
    };
    std::vector<std::thread> threads;
    for (unsigned index = 0; index < block.x; ++index) threads.emplace_back(run_thread, index);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace emulator

inline void __syncthreads() { emulator::in_block.wait(); }

inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

inline unsigned long long atomicOr(unsigned long long* word, unsigned long long bits) {
    return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}

inline float atomicAdd(float* sum, float value) {
    float before = *sum, after;
    do after = before + value;
    while (!__atomic_compare_exchange(sum, &before, &after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}

// Half precision: the conversions that the kernels use.
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

using __half = _Float16;
inline float __half2float(__half value) { return float(value); }
inline __half __float2half_rn(float value) { return __half(value); }
