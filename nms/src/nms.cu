// Non-maximum suppression on CUDA. C ABI: see nms_cuda at the end.
//
// First every pair of boxes of a group is compared, a bit a pair; then one thread block a group walks down its
// boxes, 64 at a time. Nothing returns to the host.

#include "nms.h"

#include <cmath>
#include <cstdint>
#include <cuda_runtime.h>

namespace {

using Word = unsigned long long;     // 64 boxes, a bit each
constexpr int kWord = 64;
constexpr int kWalkThreads = 512;
constexpr int kMergeRows = 8;        // rows of overlaps that one thread merges
constexpr int kKeyThreads = 256;
// Words that a group may touch: in 48 KB, with the rest that is shared.
constexpr int64_t kMaxSpan = 47 * 1024 / sizeof(Word);

// The boxes in the order in which they are visited: by group, then by descending score.
struct Sorted {
    const Box* boxes;
    const float* scores;
    const int64_t* groups;  // null: one group
    const int64_t* order;
    int64_t n;
    int64_t max_boxes;  // of a group that take part, the first

    __device__ Box box(int64_t i) const { return boxes[order[i]]; }
    __device__ int64_t group(int64_t i) const { return groups ? groups[order[i]] : 0; }
    __device__ bool usable(int64_t i) const { return is_usable(boxes[order[i]], scores[order[i]]); }

    // Words of 64 boxes that a group may touch, wherever it begins: the columns of overlap_bits.
    HOST_DEVICE int64_t span() const {
        const int64_t words = (n + kWord - 1) / kWord, largest = smaller(max_boxes, n);
        return smaller(words, (largest + kWord - 2) / kWord + 1);
    }

    // The first box whose group is not below a group; n if there is none.
    __device__ int64_t first_of(int64_t wanted) const {
        int64_t low = 0, high = n;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (group(middle) < wanted) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    // The end of the boxes that take part, of the group that begins at a box.
    __device__ int64_t group_end(int64_t begin) const {
        int64_t low = begin + 1, high = begin + smaller(max_boxes, n - begin);  // the end lies in [low, high]
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (group(middle) == group(begin)) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

// What boxes are sorted by: their scores. What can never be kept comes last.
__global__ void make_keys(const Box* boxes, const float* scores, int64_t n, float* keys) {
    const int64_t i = int64_t(blockIdx.x) * kKeyThreads + threadIdx.x;
    if (i < n) keys[i] = is_usable(boxes[i], scores[i]) ? scores[i] : -INFINITY;
}

// overlap_bits[i, v], bit b: box i suppresses box 64 (i / 64 + v) + b, which comes later in the same group.
// One tile of 64 x 64 a block: blockIdx is (row of tiles, column counted from the diagonal). Tiles between groups are
// never read, so never written.
__global__ void compare_pairs(Sorted sorted, float iou_threshold, Word* overlap_bits) {
    const int64_t row_begin = int64_t(blockIdx.x) * kWord, column_begin = row_begin + int64_t(blockIdx.y) * kWord;
    if (column_begin >= sorted.n) return;
    const int64_t row_end = row_begin + kWord < sorted.n ? row_begin + kWord : sorted.n;
    const bool diagonal = blockIdx.y == 0;
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
    overlap_bits[row * sorted.span() + blockIdx.y] = bits;
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

// One block walks one group: group blockIdx.x if groups are numbered, otherwise the one that starts at box blockIdx.x.
// Blocks without a group have nothing to do.
__global__ void walk_groups(Sorted sorted, bool numbered, const Word* overlap_bits, int64_t max_keep, bool* kept) {
    const int64_t begin = numbered ? sorted.first_of(blockIdx.x) : blockIdx.x, span = sorted.span();
    if (numbered && (begin == sorted.n || sorted.group(begin) != blockIdx.x)) return;
    if (!numbered && begin > 0 && sorted.group(begin - 1) == sorted.group(begin)) return;
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
        if (settles) diagonal[threadIdx.x] = overlap_bits[mine * span];
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
                if (chosen >> b & 1) merged |= overlap_bits[(w * kWord + b) * span + v - w];
            if (merged) atomicOr(&removed[v - first], merged);
        }
        __syncthreads();
    }
}

}  // namespace

// What to sort boxes by, in descending order: keys [n], the scores, and -infinity for what can never be kept.
// boxes [n, (y1, x1, y2, x2)], scores [n]; n > 0. Returns null, or the text of the error.
extern "C" const char* nms_keys_cuda(const float* boxes, const float* scores, int64_t n, float* keys,
                                     cudaStream_t stream) {
    const unsigned blocks = (n + kKeyThreads - 1) / kKeyThreads;
    make_keys<<<blocks, kKeyThreads, 0, stream>>>(reinterpret_cast<const Box*>(boxes), scores, n, keys);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The columns of nms_cuda's overlap_bits for n boxes, of which at most max_boxes of a group take part.
extern "C" int64_t nms_span_cuda(int64_t n, int64_t max_boxes) {
    return Sorted{nullptr, nullptr, nullptr, nullptr, n, max_boxes}.span();
}

// Non-maximum suppression within groups, on the current device and the given stream.
//
// boxes [n, (y1, x1, y2, x2)], scores [n], groups [n] or null for one group; n > 0.
// order [n]: the indices sorted by group and, within a group, by descending key.
// group_count: 0 for groups of any numbers; otherwise those of 0 .. group_count - 1 take part, and no others.
// max_boxes: at most so many of a group take part, its best. max_keep: at most so many of a group are kept.
// overlap_bits [n, nms_span_cuda(n, max_boxes)]: workspace, uninitialised.
// kept [n]: comes filled with false; set for the boxes kept.
// Returns null, or the text of the error.
extern "C" const char* nms_cuda(const float* boxes, const float* scores, const int64_t* groups, const int64_t* order,
                                int64_t n, int64_t group_count, float iou_threshold, int64_t max_boxes,
                                int64_t max_keep, Word* overlap_bits, bool* kept, cudaStream_t stream) {
    const Sorted sorted{reinterpret_cast<const Box*>(boxes), scores, groups, order, n, max_boxes};
    const int64_t span = sorted.span();
    if (span > kMaxSpan) return "too many boxes in a group; keep the best by score first, or give max_boxes";
    const unsigned words = (n + kWord - 1) / kWord;
    const bool numbered = group_count > 0;
    const unsigned walks = numbered ? group_count : groups ? n : 1;  // a group, or where one may start
    compare_pairs<<<dim3(words, span), kWord, 0, stream>>>(sorted, iou_threshold, overlap_bits);
    walk_groups<<<walks, kWalkThreads, span * sizeof(Word), stream>>>(sorted, numbered, overlap_bits, max_keep, kept);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
