// Where the pixels of an image look into a predicted mask, by three rules, and what they find there. For paste.cpp, but
// as the other headers for any compiler, nvcc included. In the types and the order of operations of reference.paste_crops, so
// that both give the same masks.
#pragma once

#include <cmath>
#include <cstdint>

#ifndef HOST_DEVICE
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif
#endif

namespace paste {

constexpr int64_t kPadding = 2;  // cells of zeros on each side of a mask

// Truncated, and within what integers hold. A NaN, which the corners of a box near the largest float may become, lies
// far behind every image.
HOST_DEVICE int64_t whole(float number) {
    if (!(number < 1e9f)) return 1000000000;
    return number > -1e9f ? int64_t(number) : -1000000000;
}

// The pixels along one axis that a box covers inside the image, [begin, end).
struct Span {
    int64_t begin, end;

    HOST_DEVICE bool is_empty() const { return begin >= end; }
};

// start, stop: the box's. limit: the image's.
HOST_DEVICE Span clip(int64_t start, int64_t stop, int64_t limit) {
    return {start > 0 ? start : 0, stop < limit ? stop : limit};
}

// A rule describes one axis of a box by its span and the position of each pixel in the mask, in which the centre of
// cell i is at i; and tells which values are inside.

// Sampled at the centres of pixels: mmdetection.
struct Centres {
    using Number = float;
    Span span;
    float low, size, cells;

    HOST_DEVICE Centres(float low, float high, int64_t cells, int64_t limit)
        : span{0, 0}, low(low), size(high - low), cells(float(cells)) {
        if (high > low) span = clip(whole(floorf(low)) - 1, whole(ceilf(high)) + 1, limit);
    }

    HOST_DEVICE float position(int64_t pixel) const {
        const float grid = (float(pixel) + 0.5f - low) / size * 2.0f - 1.0f;
        return ((grid + 1.0f) * cells - 1.0f) / 2.0f;
    }

    HOST_DEVICE static bool is_inside(float value, float) { return value >= 0.5f; }
};

// The mask in a ring of zeros, resized to the box expanded with it and truncated: maskrcnn-benchmark, torchvision.
struct Expand {
    using Number = float;
    Span span;
    int64_t first;
    float scale;

    HOST_DEVICE Expand(float low, float high, int64_t cells, int64_t limit) {
        const float middle = (high + low) * 0.5f;
        const float half = (high - low) * 0.5f * float(double(cells + 2) / double(cells));
        first = whole(middle - half);
        const int64_t last = whole(middle + half), stop = (last > first ? last : first) + 1;
        span = clip(first, stop, limit);
        scale = float(cells + 2) / float(stop - first);
    }

    HOST_DEVICE float position(int64_t pixel) const { return (float(pixel - first) + 0.5f) * scale - 1.5f; }

    HOST_DEVICE static bool is_inside(float value, float) { return value > 0.5f; }
};

// Resized to the whole pixels of the box, in double, and to no value below the mask's smallest: Matterport.
struct Resize {
    using Number = double;
    Span span;
    int64_t first;
    double scale;

    HOST_DEVICE Resize(float low, float high, int64_t cells, int64_t limit) : first(whole(low)) {
        const int64_t last = whole(high);
        span = clip(first, last, limit);
        scale = double(cells) / double(last > first ? last - first : 1);
    }

    HOST_DEVICE double position(int64_t pixel) const { return (double(pixel - first) + 0.5) * scale - 0.5; }

    HOST_DEVICE static bool is_inside(double value, double smallest) { return value >= 0.5 || smallest >= 0.5; }
};

// Between a cell of a padded mask and the next.
template <class Number>
struct Tap {
    int64_t cell;  // counted from the padding's first
    Number low, high;
};

template <class Rule>
HOST_DEVICE Tap<typename Rule::Number> find_tap(const Rule& axis, int64_t pixel, int64_t cells) {
    using Number = typename Rule::Number;
    const Number least = Number(-kPadding), most = Number(cells);  // nothing is out there
    Number position = axis.position(pixel);
    position = position > least ? position : least;
    position = position < most ? position : most;
    const Number cell = std::floor(position), part = position - cell;
    return {int64_t(cell) + kPadding, Number(1) - part, part};
}

// The sum of a matrix product with weights that are zero but for two, as BLAS adds it up: fused, in ascending order.
HOST_DEVICE float blend(float low, float weight_low, float high, float weight_high) {
    return std::fma(high, weight_high, low * weight_low);
}

HOST_DEVICE double blend(double low, double weight_low, double high, double weight_high) {
    return std::fma(high, weight_high, low * weight_low);
}

}  // namespace paste
