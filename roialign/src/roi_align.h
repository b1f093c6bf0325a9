// Per-sample maths of RoIAlign and of TensorFlow's crop_and_resize, compiled by the C++ compiler for roi_align.cpp
// and by nvcc for roi_align.cu. Float32, and in the order of operations of torchvision's roi_align and
// TensorFlow's crop_and_resize: results are theirs to the bit.
//
// Both pool an RoI axis by axis: an axis has bins, a bin has samples, a sample is interpolated between two cells.
#pragma once

#include "../../native.h"

#include <cmath>
#include <cstdint>

namespace roi {

constexpr int kMaxLevels = 8;

// One feature map of the pyramid: [images, channels, height, width] with any strides, in elements.
struct Level {
    const void* data;
    int64_t height, width;
    int64_t image_stride, channel_stride, row_stride, column_stride;
    float scale;  // cells a pixel; roi_align only
};

// How the RoIs are pooled; one struct for all RoIs of a call.
struct Pooling {
    Level levels[kMaxLevels];
    int64_t level_count, image_count, channels;
    int64_t bins_y, bins_x;
    int64_t sampling_ratio;  // samples a bin and axis; 0: as many as the bin has cells. roi_align only
    bool aligned;            // half-pixel centres. roi_align only
    float outside;           // value of a bin without any sample; 0 for roi_align
};

// The RoIs: boxes [count, (y1, x1, y2, x2)], the image of each, and its level (null: level 0).
struct Rois {
    const float* boxes;
    const int64_t* image;
    const int64_t* level;
    int64_t count;
};

// What is pooled, or its gradient: [RoIs, channels, bins_y, bins_x] with any strides, in elements.
struct Pooled {
    void* data;
    int64_t roi_stride, channel_stride, row_stride, column_stride;
};

// One axis of one RoI.
struct Axis {
    float start, step;  // where the first bin starts, and the size of a bin, in cells
    int64_t samples;    // in each bin
    int64_t cells;      // of the feature map
};

// Between cells low and high; weight_high = 1 - weight_low.
struct Sample {
    int64_t low, high;
    float weight_low, weight_high;
};

// TensorFlow's and torchvision's rules, behind the same three functions.
// axis(): from the two box coordinates; an axis without samples pools to the value of an RoI outside the image.
// sample(): sample i of a bin; false if it lies outside the feature map.

struct RoiAlign {
    static constexpr bool kAverages = true;

    HOST_DEVICE static Axis axis(const Pooling& pooling, const Level& level, float low, float high, int64_t bins,
                                 int64_t cells) {
        const float offset = pooling.aligned ? 0.5f : 0.0f;
        const float start = low * level.scale - offset;
        float size = high * level.scale - offset - start;
        if (!pooling.aligned && size < 1.0f) size = 1.0f;
        if (!(is_finite(start) && is_finite(size)) || cells == 0) return {0.0f, 0.0f, 0, 0};
        const float step = size / float(bins);
        // Beyond 2^30 samples a bin the positions repeat in float32 anyway; a box upside down has none.
        const float adaptive = larger(0.0f, smaller(ceilf(step), 1073741824.0f));
        const int64_t samples = pooling.sampling_ratio > 0 ? pooling.sampling_ratio : int64_t(adaptive);
        return {start, step, samples, cells};
    }

    HOST_DEVICE static float position(const Axis& axis, int64_t bin, int64_t i) {
        return axis.start + float(bin) * axis.step + (float(i) + 0.5f) * axis.step / float(axis.samples);
    }

    // The samples of a bin that can lie on the feature map, [first, last): a huge RoI has far too many to try them all.
    HOST_DEVICE static void range(const Axis& axis, int64_t bin, int64_t* first, int64_t* last) {
        *first = 0;
        *last = axis.samples;
        if (axis.samples <= 64 || axis.step < 0.0f) return;
        *first = first_at(axis, bin, -1.0f);
        *last = first_at(axis, bin, float(axis.cells) + 1.0f);
    }

    HOST_DEVICE static bool sample(const Axis& axis, int64_t bin, int64_t i, Sample* out) {
        float at = position(axis, bin, i);
        if (!(at >= -1.0f && at <= float(axis.cells))) return false;
        if (at <= 0.0f) at = 0.0f;
        const int64_t low = int64_t(at);
        if (low >= axis.cells - 1) {
            *out = {axis.cells - 1, axis.cells - 1, 1.0f, 0.0f};
        } else {
            const float weight_high = at - float(low);
            *out = {low, low + 1, 1.0f - weight_high, weight_high};
        }
        return true;
    }

    // Samples of a whole bin, by which the sum is divided; those outside the feature map count as zeros.
    HOST_DEVICE static float count(const Axis& y, const Axis& x) {
        const int64_t count = y.samples * x.samples;
        return count > 1 ? float(count) : 1.0f;
    }

    HOST_DEVICE static float interpolate(const Sample& y, const Sample& x, float low_low, float low_high,
                                         float high_low, float high_high) {
        return y.weight_low * x.weight_low * low_low + y.weight_low * x.weight_high * low_high +
               y.weight_high * x.weight_low * high_low + y.weight_high * x.weight_high * high_high;
    }

private:
    // The first sample at or beyond a position; positions ascend.
    HOST_DEVICE static int64_t first_at(const Axis& axis, int64_t bin, float at) {
        int64_t low = 0, high = axis.samples;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (position(axis, bin, middle) < at) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

// Boxes are normalised: 1 is the last cell. One sample a bin; the corners of the box lie on samples.
struct CropAndResize {
    static constexpr bool kAverages = false;

    HOST_DEVICE static Axis axis(const Pooling&, const Level&, float low, float high, int64_t bins, int64_t cells) {
        const float last = float(cells - 1);
        if (bins > 1) return {low * last, (high - low) * last / float(bins - 1), 1, cells};
        return {0.5f * (low + high) * last, 0.0f, 1, cells};
    }

    HOST_DEVICE static void range(const Axis& axis, int64_t, int64_t* first, int64_t* last) {
        *first = 0;
        *last = axis.samples;
    }

    HOST_DEVICE static bool sample(const Axis& axis, int64_t bin, int64_t, Sample* out) {
        const float at = axis.start + float(bin) * axis.step;
        if (!(at >= 0.0f && at <= float(axis.cells - 1))) return false;
        // Beyond 2^24 cells, float(cells - 1) may lie above the last one.
        const int64_t low = smaller(int64_t(floorf(at)), axis.cells - 1);
        const float weight_high = at - floorf(at);
        *out = {low, smaller(int64_t(ceilf(at)), axis.cells - 1), 1.0f - weight_high, weight_high};
        return true;
    }

    HOST_DEVICE static float count(const Axis&, const Axis&) { return 1.0f; }

    HOST_DEVICE static float interpolate(const Sample& y, const Sample& x, float low_low, float low_high,
                                         float high_low, float high_high) {
        const float low = low_low + (low_high - low_low) * x.weight_high;
        const float high = high_low + (high_high - high_low) * x.weight_high;
        return low + (high - low) * y.weight_high;
    }
};

}  // namespace roi
