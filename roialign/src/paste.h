// Where each pixel of an image samples a predicted mask, by three rules, and the value that it gets. Types and the order
// of operations are those of paste_crops in reference.py, so that both give the same masks. Only paste.cpp includes this
// file, but nvcc could compile it as well.
#pragma once

#include "../../native.h"

#include <cmath>
#include <cstdint>

namespace paste {

// In the order of PASTE_RULES in paste.py.
enum RuleCode : int64_t { kCentres, kExpand, kResize };

constexpr int64_t kPadding = 2;  // cells of zeros on each side of a mask

// Truncates, and clamps to +-1e9. The corners of a box near the largest float may overflow to NaN, which becomes 1e9: a
// pixel beyond every image.
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

// A rule has, for one axis of a box: the span of pixels, and the position of each pixel in the mask. The centre of cell i
// is at position i. is_inside() says which values belong to the object.

// mmdetection: samples the mask at the centres of pixels.
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

// maskrcnn-benchmark, torchvision: puts a ring of zeros around the mask, expands the box with it, truncates the box to
// whole pixels, and resizes.
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

// Matterport: resizes to the whole pixels of the box, in double, and to no value below the mask's smallest.
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

// The weights of a cell of a padded mask and of the next one.
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

// A dot product of which only two weights are not zero, rounded as BLAS rounds it: fused, in ascending order.
HOST_DEVICE float blend(float low, float weight_low, float high, float weight_high) {
    return std::fma(high, weight_high, low * weight_low);
}

HOST_DEVICE double blend(double low, double weight_low, double high, double weight_high) {
    return std::fma(high, weight_high, low * weight_low);
}

}  // namespace paste
