// Masks that are kept as crops of their canvases, compiled by the C++ compiler for roi_align.cpp and by nvcc for
// roi_align.cu. What a canvas would be sampled for is done by the rule RoiAlign of roi_align.h, to the bit: pixels
// outside the crop are zeros, and adding zeros to a sum changes nothing, so they are skipped.
#pragma once

#include "roi_align.h"

namespace roi {

// The masks: crops of 0 and 1, row by row, one after another.
struct MaskCrops {
    int64_t pixel_count;
    const uint8_t* pixels;
    const int64_t* offsets;   // of each crop in pixels
    const int64_t* sizes;     // [count, (height, width)]
    const int64_t* origins;   // [count, (y, x)] of the crop's first pixel in its canvas
    const int64_t* canvases;  // [count, (height, width)]
    int64_t count;
};

constexpr int64_t kMaxSide = 1 << 24;  // of canvases and crops; float32 has every whole number up to this one

// One axis of a crop: its rows or columns, in its canvas.
struct CropAxis {
    int64_t origin, size, cells;  // cells: of the canvas

    HOST_DEVICE bool is_sane() const {
        return origin >= -kMaxSide && origin <= kMaxSide && size <= kMaxSide && cells >= 0 && cells <= kMaxSide;
    }

    HOST_DEVICE bool holds(int64_t cell) const { return cell >= origin && cell < origin + size; }
};

struct MaskCrop {
    const uint8_t* pixels;  // null: the mask does not exist, has pixels that do not, or an absurd size
    CropAxis y, x;

    // A pixel of the canvas.
    HOST_DEVICE float at(int64_t row, int64_t column) const {
        if (!(y.holds(row) && x.holds(column))) return 0.0f;
        return float(pixels[(row - y.origin) * x.size + (column - x.origin)]);
    }
};

HOST_DEVICE MaskCrop find_mask(const MaskCrops& masks, int64_t index) {
    MaskCrop crop = {};
    if (index < 0 || index >= masks.count) return crop;
    const int64_t offset = masks.offsets[index];
    const int64_t *size = masks.sizes + 2 * index, *origin = masks.origins + 2 * index;
    const int64_t* canvas = masks.canvases + 2 * index;
    const CropAxis y = {origin[0], size[0], canvas[0]}, x = {origin[1], size[1], canvas[1]};
    if (!fits(offset, size[0], size[1], masks.pixel_count) || !y.is_sane() || !x.is_sane()) return crop;
    return {masks.pixels + offset, y, x};
}

// roi_align's axis with spatial scale 1, adaptive sampling and aligned = true.
HOST_DEVICE Axis mask_axis(float low, float high, int64_t bins, const CropAxis& crop) {
    Pooling pooling = {};
    pooling.aligned = true;
    Level level = {};
    level.scale = 1.0f;
    return RoiAlign::axis(pooling, level, low, high, bins, crop.cells);
}

// The rows or columns of a crop that lie in a box and on the canvas: [first, last), those at its ends perhaps in part.
// Counted from the crop's origin; in double, where that rounds nothing.
struct Span {
    double low, high;
    int64_t first, last;

    HOST_DEVICE double share(int64_t cell) const {
        const double begin = low > double(cell) ? low : double(cell);
        const double end = high < double(cell + 1) ? high : double(cell + 1);
        return end - begin;
    }
};

HOST_DEVICE Span find_span(float box_low, float box_high, const CropAxis& crop) {
    const double origin = double(crop.origin), low = double(box_low) - origin, high = double(box_high) - origin;
    const double begin = origin < 0.0 ? -origin : 0.0, end = double(smaller(crop.size, crop.cells - crop.origin));
    Span span = {low > begin ? low : begin, high < end ? high : end, 0, 0};
    if (!(box_low < box_high && span.low < span.high)) return span;  // empty, or NaN
    span.first = int64_t(floor(span.low));
    span.last = int64_t(ceil(span.high));
    return span;
}

}  // namespace roi
