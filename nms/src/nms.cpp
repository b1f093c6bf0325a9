// Non-maximum suppression on the CPU. C ABI: see nms_cpu at the end.
//
// Boxes are taken in blocks of descending score. All boxes of a block are first compared with the boxes kept
// so far, which is the bulk of the work, vectorised and independent for each box; then the block is settled in order.

#include "nms.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t kBlock = 1024;           // boxes settled together
constexpr int64_t kLanes = 64;             // kept boxes compared between two early exits
constexpr int64_t kParallelWork = 1 << 18; // comparisons below which a block is not worth waking threads for

// Boxes as one array a coordinate, so that the comparison vectorises.
struct BoxArrays {
    std::vector<float> y1, x1, y2, x2, area;

    explicit BoxArrays(int64_t n) : y1(n), x1(n), y2(n), x2(n), area(n) {}

    void set(int64_t i, const Box& box) {
        y1[i] = box.y1;
        x1[i] = box.x1;
        y2[i] = box.y2;
        x2[i] = box.x2;
        area[i] = box_area(box);
    }

    Box box(int64_t i) const { return {y1[i], x1[i], y2[i], x2[i]}; }
};

// Whether any of boxes [begin, end) suppresses the box.
bool any_overlaps(const BoxArrays& kept, int64_t begin, int64_t end, const Box& box, float iou_threshold) {
    const float area = box_area(box);
    const float *y1 = kept.y1.data(), *x1 = kept.x1.data(), *y2 = kept.y2.data(), *x2 = kept.x2.data();
    const float* areas = kept.area.data();
    for (int64_t start = begin; start < end; start += kLanes) {
        const int64_t stop = std::min(start + kLanes, end);
        int hits = 0;
#pragma omp simd reduction(| : hits)
        for (int64_t k = start; k < stop; ++k)
            hits |= overlaps({y1[k], x1[k], y2[k], x2[k]}, areas[k], box, area, iou_threshold);
        if (hits) return true;
    }
    return false;
}

// Descending score as an ascending integer; -0.0 ties with 0.0.
uint32_t descending_key(float score) {
    const float value = score + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

// Stable: rows sorted by their key, equal keys in the order in which they came. Radix sort, 11 bits a pass.
std::vector<int64_t> sort_rows(std::vector<int64_t> rows, const std::vector<uint32_t>& keys) {
    std::vector<int64_t> sorted(rows.size());
    for (int shift = 0; shift < 32; shift += 11) {
        int64_t starts[1 << 11] = {};
        const auto digit = [&](int64_t row) { return (keys[row] >> shift) & 0x7ff; };
        for (int64_t row : rows) ++starts[digit(row)];
        std::exclusive_scan(std::begin(starts), std::end(starts), starts, int64_t{0});
        for (int64_t row : rows) sorted[starts[digit(row)]++] = row;
        rows.swap(sorted);
    }
    return rows;
}

// Any 64-bit group ids as 0 .. G-1, in the order of the ids. At most 2^31 - 1 boxes come in.
std::vector<uint32_t> dense_groups(const int64_t* groups, int64_t n) {
    std::vector<int64_t> ids(groups, groups + n);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::vector<uint32_t> dense(n);
    for (int64_t i = 0; i < n; ++i)
        dense[i] = std::lower_bound(ids.begin(), ids.end(), groups[i]) - ids.begin();
    return dense;
}

struct Suppression {
    const BoxArrays& boxes;            // of all groups, by group and descending score
    const std::vector<int64_t>& rows;  // the caller's index of each
    float iou_threshold;
    int64_t max_boxes;     // of a group that take part, the best
    int64_t max_keep;      // in a group
    BoxArrays kept;        // those of a group start where the group starts
    std::vector<char> keep; // by the caller's index

    // Settles the group at [begin, end).
    void run(int64_t begin, int64_t end, int threads) {
        int64_t kept_end = begin;
        end = begin + std::min(end - begin, max_boxes);
        for (int64_t first = begin; first < end && kept_end - begin < max_keep; first += kBlock)
            kept_end = settle_block(begin, kept_end, first, std::min(first + kBlock, end), threads);
    }

    // Returns the new end of the group's kept boxes.
    int64_t settle_block(int64_t begin, int64_t kept_before, int64_t first, int64_t last, int threads) {
        bool suppressed[kBlock];
        const bool parallel = threads > 1 && (last - first) * (kept_before - begin) > kParallelWork;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16) if (parallel)
        for (int64_t i = first; i < last; ++i)
            suppressed[i - first] = any_overlaps(kept, begin, kept_before, boxes.box(i), iou_threshold);
        int64_t kept_end = kept_before;
        for (int64_t i = first; i < last && kept_end - begin < max_keep; ++i) {
            const Box box = boxes.box(i);
            if (suppressed[i - first] || any_overlaps(kept, kept_before, kept_end, box, iou_threshold)) continue;
            kept.set(kept_end++, box);
            keep[rows[i]] = 1;
        }
        return kept_end;
    }
};

std::vector<int64_t> group_starts(const std::vector<int64_t>& rows, const std::vector<uint32_t>& groups) {
    std::vector<int64_t> starts;
    for (size_t i = 0; i < rows.size(); ++i)
        if (i == 0 || (!groups.empty() && groups[rows[i]] != groups[rows[i - 1]])) starts.push_back(i);
    starts.push_back(rows.size());
    return starts;
}

// The rows that are kept, in descending score, ties by lower index.
//
// usable: the rows that take part, ascending. group_of: 0 .. G-1 for each of these, by row; empty: one group.
std::vector<int64_t> suppress(const Box* boxes, const float* scores, int64_t n, std::vector<int64_t> usable,
                              const std::vector<uint32_t>& group_of, float iou_threshold, int64_t max_boxes,
                              int64_t max_keep, int threads) {
    std::vector<uint32_t> keys(n);
    for (int64_t i = 0; i < n; ++i) keys[i] = descending_key(scores[i]);
    std::vector<int64_t> by_score = sort_rows(std::move(usable), keys);
    const std::vector<int64_t> rows = group_of.empty() ? by_score : sort_rows(by_score, group_of);
    const int64_t m = rows.size();
    BoxArrays sorted(m);
    for (int64_t i = 0; i < m; ++i) sorted.set(i, boxes[rows[i]]);

    Suppression suppression{sorted, rows, iou_threshold, max_boxes, max_keep, BoxArrays(m), std::vector<char>(n)};
    const std::vector<int64_t> starts = group_starts(rows, group_of);
    const int64_t group_count = starts.size() - 1;
    const bool across = group_count >= threads;  // else the threads work within a group
    // Nothing below allocates: an exception must not leave a region.
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (across && threads > 1)
    for (int64_t g = 0; g < group_count; ++g) suppression.run(starts[g], starts[g + 1], across ? 1 : threads);

    by_score.erase(std::remove_if(by_score.begin(), by_score.end(), [&](int64_t row) { return !suppression.keep[row]; }),
                   by_score.end());
    return by_score;
}

}  // namespace

// Non-maximum suppression within groups.
//
// boxes [n, (y1, x1, y2, x2)], scores [n], groups [n] or null for one group.
// max_boxes: at most so many of a group take part, its best. max_keep: at most so many of a group are kept.
// keep [n]: filled with the indices kept, in descending score, ties by lower index.
// Returns their number, or -1 if memory ran out.
extern "C" int64_t nms_cpu(const float* boxes, const float* scores, const int64_t* groups, int64_t n,
                           float iou_threshold, int64_t max_boxes, int64_t max_keep, int threads, int64_t* keep) {
    Guard guard;
    int64_t count = 0;
    guard.run([&] {
        const Box* sides = reinterpret_cast<const Box*>(boxes);
        std::vector<int64_t> usable;
        for (int64_t i = 0; i < n; ++i)
            if (is_usable(sides[i], scores[i])) usable.push_back(i);
        const std::vector<uint32_t> group_of = groups ? dense_groups(groups, n) : std::vector<uint32_t>();
        const std::vector<int64_t> kept =
            suppress(sides, scores, n, std::move(usable), group_of, iou_threshold, max_boxes, max_keep, threads);
        count = kept.size();
        std::copy(kept.begin(), kept.end(), keep);
    });
    return guard.result() ? -1 : count;
}

// The same, and of each image the best that are kept in any of its groups.
//
// groups [n]: image * groups_per_image + a number below groups_per_image; boxes of other groups do not take part.
// There are fewer than 2^32 groups.
// keep [images, limit]: comes filled with zeros. Each row is filled with the indices kept of an image, in descending
// score, ties by lower index, at most `limit` of a group and of an image. counts [images]: how many these are.
// Returns 0, or -1 if memory ran out.
extern "C" int64_t nms_of_images_cpu(const float* boxes, const float* scores, const int64_t* groups, int64_t n,
                                     int64_t images, int64_t groups_per_image, float iou_threshold, int64_t max_boxes,
                                     int64_t limit, int threads, int64_t* keep, int64_t* counts) {
    Guard guard;
    guard.run([&] {
        const Box* sides = reinterpret_cast<const Box*>(boxes);
        std::vector<int64_t> usable;
        std::vector<uint32_t> group_of(n);
        for (int64_t i = 0; i < n; ++i) {
            if (groups[i] < 0 || groups[i] >= images * groups_per_image) continue;
            group_of[i] = uint32_t(groups[i]);
            if (is_usable(sides[i], scores[i])) usable.push_back(i);
        }
        const std::vector<int64_t> kept =
            suppress(sides, scores, n, std::move(usable), group_of, iou_threshold, max_boxes, limit, threads);
        std::fill_n(counts, images, int64_t{0});
        for (int64_t row : kept) {
            const int64_t image = group_of[row] / groups_per_image;
            if (counts[image] < limit) keep[image * limit + counts[image]++] = row;
        }
    });
    return guard.result() ? -1 : 0;
}
