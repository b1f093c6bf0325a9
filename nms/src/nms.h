// Per-box maths of non-maximum suppression, compiled by the C++ compiler for nms.cpp and by nvcc for nms.cu.
#pragma once

#include "../../native.h"

// A box in pixels; (y2, x2) lies outside, so the height is y2 - y1.
struct Box {
    float y1, x1, y2, x2;
};

// A box or score that is not finite is never kept and suppresses nothing.
HOST_DEVICE bool is_usable(Box box, float score) {
    return is_finite(box.y1) && is_finite(box.x1) && is_finite(box.y2) && is_finite(box.x2) && is_finite(score);
}

// Zero for a box with y2 <= y1 or x2 <= x1.
HOST_DEVICE float box_area(Box box) {
    return larger(box.y2 - box.y1, 0.0f) * larger(box.x2 - box.x1, 0.0f);
}

HOST_DEVICE float intersection(Box a, Box b) {
    const float height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
    const float width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
    return larger(height, 0.0f) * larger(width, 0.0f);
}

// Whether the IoU lies strictly above the threshold. Two empty boxes have IoU 0 / 0, which does not.
HOST_DEVICE bool overlaps(Box a, float area_a, Box b, float area_b, float iou_threshold) {
    const float inter = intersection(a, b);
    return inter / (area_a + area_b - inter) > iou_threshold;
}
