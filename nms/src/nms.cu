// Non-maximum suppression on CUDA. C ABI: see nms_cuda at the end.
//
// First every pair of boxes of a group is compared, a bit a pair; then one thread block a group walks down its
// boxes, 64 at a time. Nothing returns to the host.

#include "nms.h"

#include <cstdint>
#include <cuda_runtime.h>

namespace {

using Word = unsigned long long;     // 64 boxes, a bit each
constexpr int kWord = 64;
constexpr int kWalkThreads = 512;
constexpr int kMergeRows = 8;        // rows of overlaps that one thread merges
constexpr int64_t kMaxBoxes = 47 * 1024 / sizeof(Word) * kWord;  // a bit each, in 48 KB with the rest that is shared

// The boxes in the order in which they are visited: by group, then by descending score.
struct Sorted {
    const Box* boxes;
    const float* scores;
    const int64_t* groups;  // null: one group
    const int64_t* order;
    int64_t n;

    __device__ Box box(int64_t i) const { return boxes[order[i]]; }
    __device__ int64_t group(int64_t i) const { return groups ? groups[order[i]] : 0; }
    __device__ bool usable(int64_t i) const { return is_usable(boxes[order[i]], scores[order[i]]); }
    __device__ int64_t words() const { return (n + kWord - 1) / kWord; }

    // The end of the group of box i.
    __device__ int64_t group_end(int64_t i) const {
        int64_t low = i + 1, high = n;  // the end lies in [low, high]
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (group(middle) == group(i)) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

// overlap_bits[i, w], bit b: box i suppresses box 64 w + b, which comes later in the same group.
// One tile of 64 x 64 a block. Tiles below the diagonal or between groups are never read, so never written.
__global__ void compare_pairs(Sorted sorted, float iou_threshold, Word* overlap_bits) {
    const int64_t row_begin = int64_t(blockIdx.y) * kWord, column_begin = int64_t(blockIdx.x) * kWord;
    if (column_begin < row_begin) return;
    const int64_t row_end = row_begin + kWord < sorted.n ? row_begin + kWord : sorted.n;
    const bool diagonal = column_begin == row_begin;
    if (!diagonal && sorted.group(row_end - 1) != sorted.group(column_begin)) return;

    __shared__ Box columns[kWord];
    __shared__ float areas[kWord];
    __shared__ int64_t groups[kWord];
    const int lane = threadIdx.x;
    const int column_count = sorted.n - column_begin < kWord ? int(sorted.n - column_begin) : kWord;
    if (lane < column_count) {
        columns[lane] = sorted.box(column_begin + lane);
        areas[lane] = box_area(columns[lane]);
        groups[lane] = sorted.group(column_begin + lane);
    }
    __syncthreads();

    const int64_t row = row_begin + lane;
    if (row >= sorted.n) return;
    const Box box = sorted.box(row);
    const float area = box_area(box);
    const int64_t group = sorted.group(row);
    Word bits = 0;
    for (int b = diagonal ? lane + 1 : 0; b < column_count; ++b)
        if (groups[b] == group && overlaps(box, area, columns[b], areas[b], iou_threshold)) bits |= Word(1) << b;
    overlap_bits[row * sorted.words() + blockIdx.x] = bits;
}

// The bits of word w that cannot be kept: outside [begin, end), or not finite.
__device__ Word unavailable(const Sorted& sorted, int64_t w, int64_t begin, int64_t end) {
    Word bits = 0;
    for (int b = 0; b < kWord; ++b) {
        const int64_t i = w * kWord + b;
        if (i < begin || i >= end || !sorted.usable(i)) bits |= Word(1) << b;
    }
    return bits;
}

// Settles 64 boxes in order: those that are still there and not overlapped by a chosen one, at most limit.
__device__ Word choose(Word removed, const Word* overlap_bits, int64_t limit) {
    Word chosen = 0;
    for (int b = 0; b < kWord; ++b)
        if (!(removed >> b & 1) && limit > 0) {
            chosen |= Word(1) << b;
            removed |= overlap_bits[b];
            --limit;
        }
    return chosen;
}

// One block walks the group that starts at box blockIdx.x; blocks where none starts have nothing to do.
__global__ void walk_groups(Sorted sorted, const Word* overlap_bits, int64_t max_keep, bool* kept) {
    const int64_t begin = blockIdx.x, words = sorted.words();
    if (begin > 0 && sorted.group(begin - 1) == sorted.group(begin)) return;
    extern __shared__ Word removed[];  // one word for every word that the group touches
    __shared__ Word diagonal[kWord], chosen;
    const int64_t end = sorted.group_end(begin);
    const int64_t first = begin / kWord, last = (end - 1) / kWord;
    for (int64_t w = first + threadIdx.x; w <= last; w += blockDim.x)
        removed[w - first] = unavailable(sorted, w, begin, end);

    int64_t count = 0;
    for (int64_t w = first; w <= last && count < max_keep; ++w) {
        const int64_t mine = w * kWord + threadIdx.x;
        const bool settles = threadIdx.x < kWord && mine < sorted.n;
        if (settles) diagonal[threadIdx.x] = overlap_bits[mine * words + w];
        __syncthreads();
        if (threadIdx.x == 0) chosen = choose(removed[w - first], diagonal, max_keep - count);
        __syncthreads();
        count += __popcll(chosen);
        if (settles && (chosen >> threadIdx.x & 1)) kept[sorted.order[mine]] = true;

        // What the chosen ones overlap is gone from the words to come.
        const int64_t later = last - w;
        for (int64_t task = threadIdx.x; task < later * (kWord / kMergeRows); task += blockDim.x) {
            const int64_t v = w + 1 + task % later;
            Word merged = 0;
            for (int b = task / later * kMergeRows, stop = b + kMergeRows; b < stop; ++b)
                if (chosen >> b & 1) merged |= overlap_bits[(w * kWord + b) * words + v];
            if (merged) atomicOr(&removed[v - first], merged);
        }
        __syncthreads();
    }
}

}  // namespace

// Non-maximum suppression within groups, on the current device and the given stream.
//
// boxes [n, (y1, x1, y2, x2)], scores [n], groups [n] or null for one group; n > 0.
// order [n]: the indices sorted by group and, within a group, by descending score.
// overlap_bits [n, ceil(n / 64)]: workspace, uninitialised.
// kept [n]: comes filled with false; set for the boxes kept, at most max_keep of a group.
// Returns null, or the text of the error.
extern "C" const char* nms_cuda(const float* boxes, const float* scores, const int64_t* groups, const int64_t* order,
                                int64_t n, float iou_threshold, int64_t max_keep, Word* overlap_bits, bool* kept,
                                cudaStream_t stream) {
    if (n > kMaxBoxes) return "too many boxes for one call; keep the best by score first";
    const Sorted sorted{reinterpret_cast<const Box*>(boxes), scores, groups, order, n};
    const unsigned words = (n + kWord - 1) / kWord;
    const unsigned group_starts = groups ? n : 1;  // where a group may start
    compare_pairs<<<dim3(words, words), kWord, 0, stream>>>(sorted, iou_threshold, overlap_bits);
    walk_groups<<<group_starts, kWalkThreads, words * sizeof(Word), stream>>>(sorted, overlap_bits, max_keep, kept);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
