// RoIAlign and crop_and_resize on the CPU, forward and backward, and masks under RoIs. C ABI: see the end.
//
// The loop over channels is innermost, so that what a sample needs is computed once for many; where they are interleaved
// (channels_last) it is vectorised. Forward, threads share the rows of bins. Backward, each thread owns some
// channels of an image and adds the RoIs in their order: no races, and the same sums for any number of threads.

#include "mask_crop.h"
#include "roi_align.h"

#include <algorithm>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using namespace roi;

constexpr int64_t kLanes = 128;  // channels pooled together

struct BFloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float value, float* out) { *out = value; }

// To nearest, ties to even. A NaN made of bfloat16s has no low bits that rounding could carry into an infinity.
inline void store(float value, BFloat16* out) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out->bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The samples of all bins of one axis, those outside the feature map left out. low and high are in elements.
struct AxisTable {
    std::vector<Sample> samples;
    std::vector<int64_t> begins;  // of each bin, and the end

    template <class Rule>
    void build(const Axis& axis, int64_t bins, int64_t stride) {
        samples.clear();
        begins.assign(1, 0);
        for (int64_t bin = 0; bin < bins; ++bin) {
            int64_t first, last;
            Rule::range(axis, bin, &first, &last);
            Sample sample;
            for (int64_t i = first; i < last; ++i)
                if (Rule::sample(axis, bin, i, &sample))
                    samples.push_back({sample.low * stride, sample.high * stride, sample.weight_low, sample.weight_high});
            begins.push_back(samples.size());
        }
    }

    const Sample* begin(int64_t bin) const { return samples.data() + begins[bin]; }
    const Sample* end(int64_t bin) const { return samples.data() + begins[bin + 1]; }
};

// One RoI, ready to be pooled.
struct RoiTables {
    AxisTable y, x;
    float count;
    const Level* level;
    int64_t image_offset;  // of the RoI's image in its level, in elements
    int64_t roi = -1;

    template <class Rule>
    void build(const Pooling& pooling, const Rois& rois, int64_t index) {
        if (index == roi) return;
        roi = index;
        level = &pooling.levels[rois.level ? rois.level[index] : 0];
        image_offset = rois.image[index] * level->image_stride;
        const float* box = rois.boxes + 4 * index;
        const Axis y_axis = Rule::axis(pooling, *level, box[0], box[2], pooling.bins_y, level->height);
        const Axis x_axis = Rule::axis(pooling, *level, box[1], box[3], pooling.bins_x, level->width);
        y.build<Rule>(y_axis, pooling.bins_y, level->row_stride);
        x.build<Rule>(x_axis, pooling.bins_x, level->column_stride);
        count = Rule::count(y_axis, x_axis);
    }

    bool is_empty(int64_t bin_y, int64_t bin_x) const {
        return y.begin(bin_y) == y.end(bin_y) || x.begin(bin_x) == x.end(bin_x);
    }
};

bool levels_interleaved(const Pooling& pooling) {
    const auto interleaved = [](const Level& level) { return level.channel_stride == 1; };
    return pooling.channels > 1 &&
           std::all_of(pooling.levels, pooling.levels + pooling.level_count, interleaved);
}

// Fresh memory comes 4 KB a page fault, which takes longer than the pooling; ask for 2 MB pages instead.
void advise_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    if (end > begin + (4 << 20)) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

////////////////////////////////////////////////////////////
//  Forward
////////////////////////////////////////////////////////////

// Pools `lanes` channels of one bin, at most kLanes. Stride: 1 where channels lie side by side, in what is read and in
// what is written; 0 for any other strides.
template <class Rule, int kStride, class T>
inline void pool_lanes(const T* image, const RoiTables& tables, int64_t bin_y, int64_t bin_x, int64_t lanes, T* out,
                       int64_t out_stride) {
    const int64_t stride = kStride ? kStride : tables.level->channel_stride;
    float sums[kLanes];
    std::fill_n(sums, lanes, 0.0f);
    for (const Sample* y = tables.y.begin(bin_y); y != tables.y.end(bin_y); ++y)
        for (const Sample* x = tables.x.begin(bin_x); x != tables.x.end(bin_x); ++x) {
            const T *low_low = image + y->low + x->low, *low_high = image + y->low + x->high;
            const T *high_low = image + y->high + x->low, *high_high = image + y->high + x->high;
            const Sample sample_y = *y, sample_x = *x;
#pragma omp simd
            for (int64_t c = 0; c < lanes; ++c)
                sums[c] += Rule::interpolate(sample_y, sample_x, load(low_low[c * stride]), load(low_high[c * stride]),
                                             load(high_low[c * stride]), load(high_high[c * stride]));
        }
    const float count = tables.count;
#pragma omp simd
    for (int64_t c = 0; c < lanes; ++c) store(sums[c] / count, out + c * (kStride ? kStride : out_stride));
}

// Pools one row of bins of an RoI.
template <class Rule, int kStride, class T>
void pool_row(const Pooling& pooling, const RoiTables& tables, int64_t bin_y, const Pooled& pooled) {
    const T* image = static_cast<const T*>(tables.level->data) + tables.image_offset;
    T* row = static_cast<T*>(pooled.data) + tables.roi * pooled.roi_stride + bin_y * pooled.row_stride;
    const int64_t in_stride = tables.level->channel_stride, out_stride = pooled.channel_stride;
    for (int64_t bin_x = 0; bin_x < pooling.bins_x; ++bin_x)
        for (int64_t c = 0; c < pooling.channels; c += kLanes) {
            const T* in = image + c * in_stride;
            T* out = row + bin_x * pooled.column_stride + c * out_stride;
            const int64_t lanes = std::min(kLanes, pooling.channels - c);
            if (tables.is_empty(bin_y, bin_x))
                for (int64_t lane = 0; lane < lanes; ++lane) store(pooling.outside, out + lane * out_stride);
            else if (lanes == kLanes)  // the compiler knows these two widths, and unrolls for them
                pool_lanes<Rule, kStride>(in, tables, bin_y, bin_x, kLanes, out, out_stride);
            else if (lanes == 1)
                pool_lanes<Rule, kStride>(in, tables, bin_y, bin_x, 1, out, out_stride);
            else
                pool_lanes<Rule, kStride>(in, tables, bin_y, bin_x, lanes, out, out_stride);
        }
}

template <class Rule, class T>
void forward(const Pooling& pooling, const Rois& rois, const Pooled& pooled, int threads, Guard& guard) {
    const bool interleaved = levels_interleaved(pooling) && pooled.channel_stride == 1;
    const int64_t chunk = rois.count >= 4 * threads ? pooling.bins_y : 1;  // rows that a thread takes at a time
    advise_huge_pages(pooled.data, rois.count * pooling.channels * pooling.bins_y * pooling.bins_x * int64_t(sizeof(T)));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        RoiTables tables;
#pragma omp for schedule(dynamic, chunk)
        for (int64_t task = 0; task < rois.count * pooling.bins_y; ++task) {
            guard.run([&] {
                tables.build<Rule>(pooling, rois, task / pooling.bins_y);
                const auto pool = interleaved ? pool_row<Rule, 1, T> : pool_row<Rule, 0, T>;
                pool(pooling, tables, task % pooling.bins_y, pooled);
            });
        }
    }
}

////////////////////////////////////////////////////////////
//  Backward
////////////////////////////////////////////////////////////

// Spreads the gradient of one bin, `lanes` channels of it, over the cells it was pooled from. Stride: as in pool_lanes,
// of the cells.
template <int kStride, class T>
inline void spread_lanes(const T* grad, int64_t grad_stride, const RoiTables& tables, int64_t bin_y, int64_t bin_x,
                         int64_t lanes, float* image) {
    const int64_t stride = kStride ? kStride : tables.level->channel_stride;
    float shares[kLanes];
    if (grad_stride == 1)
        for (int64_t c = 0; c < lanes; ++c) shares[c] = load(grad[c]) / tables.count;
    else
        for (int64_t c = 0; c < lanes; ++c) shares[c] = load(grad[c * grad_stride]) / tables.count;
    for (const Sample* y = tables.y.begin(bin_y); y != tables.y.end(bin_y); ++y)
        for (const Sample* x = tables.x.begin(bin_x); x != tables.x.end(bin_x); ++x) {
            const auto add = [&](int64_t offset, float weight) {
                float* cell = image + offset;
#pragma omp simd
                for (int64_t c = 0; c < lanes; ++c) cell[c * stride] += weight * shares[c];
            };
            add(y->low + x->low, y->weight_low * x->weight_low);
            add(y->low + x->high, y->weight_low * x->weight_high);
            add(y->high + x->low, y->weight_high * x->weight_low);
            add(y->high + x->high, y->weight_high * x->weight_high);
        }
}

// Spreads channels [begin, end) of one RoI, at most kLanes.
template <int kStride, class T>
void spread_roi(const Pooling& pooling, const RoiTables& tables, const Pooled& pooled, int64_t begin, int64_t end) {
    const Level& level = *tables.level;
    float* image = static_cast<float*>(const_cast<void*>(level.data)) + tables.image_offset + begin * level.channel_stride;
    const int64_t grad_stride = pooled.channel_stride, lanes = end - begin;
    const T* grads = static_cast<const T*>(pooled.data) + tables.roi * pooled.roi_stride + begin * grad_stride;
    for (int64_t bin_y = 0; bin_y < pooling.bins_y; ++bin_y)
        for (int64_t bin_x = 0; bin_x < pooling.bins_x; ++bin_x) {
            const T* grad = grads + bin_y * pooled.row_stride + bin_x * pooled.column_stride;
            if (lanes == kLanes) spread_lanes<kStride>(grad, grad_stride, tables, bin_y, bin_x, kLanes, image);
            else if (lanes == 1) spread_lanes<kStride>(grad, grad_stride, tables, bin_y, bin_x, 1, image);
            else spread_lanes<kStride>(grad, grad_stride, tables, bin_y, bin_x, lanes, image);
        }
}

void fill_zeros(void* data, int64_t bytes, int threads) {
    constexpr int64_t kPiece = 2 << 20;
    advise_huge_pages(data, bytes);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && bytes > kPiece)
    for (int64_t begin = 0; begin < bytes; begin += kPiece)
        std::memset(static_cast<char*>(data) + begin, 0, std::min(kPiece, bytes - begin));
}

// The levels of pooling are the gradients, uninitialised.
template <class Rule, class T>
void backward(const Pooling& pooling, const Rois& rois, const Pooled& pooled, int threads, Guard& guard) {
    const bool interleaved = levels_interleaved(pooling);
    for (const Level* level = pooling.levels; level != pooling.levels + pooling.level_count; ++level) {
        const int64_t count = pooling.image_count * pooling.channels * level->height * level->width;
        fill_zeros(const_cast<void*>(level->data), count * int64_t(sizeof(float)), threads);
    }
    const int64_t share = (pooling.channels * pooling.image_count + threads - 1) / threads;
    const int64_t width = std::clamp<int64_t>((share + 15) / 16 * 16, 16, kLanes);  // channels that a thread takes at a time
    const int64_t parts = (pooling.channels + width - 1) / width;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        RoiTables tables;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pooling.image_count * parts; ++task) {
            const int64_t image = task / parts, begin = task % parts * width;
            const int64_t end = std::min(begin + width, pooling.channels);
            guard.run([&] {
                for (int64_t roi = 0; roi < rois.count; ++roi) {
                    if (rois.image[roi] != image) continue;
                    tables.build<Rule>(pooling, rois, roi);
                    (interleaved ? spread_roi<1, T> : spread_roi<0, T>)(pooling, tables, pooled, begin, end);
                }
            });
        }
    }
}

template <class T>
int run(const Pooling& pooling, const Rois& rois, const Pooled& pooled, bool crop, bool is_backward, int threads) {
    Guard guard;
    if (is_backward) (crop ? backward<CropAndResize, T> : backward<RoiAlign, T>)(pooling, rois, pooled, threads, guard);
    else (crop ? forward<CropAndResize, T> : forward<RoiAlign, T>)(pooling, rois, pooled, threads, guard);
    return guard.result();
}

////////////////////////////////////////////////////////////
//  Masks
////////////////////////////////////////////////////////////

constexpr int64_t kBins = 16;  // bins of a row that are summed together, one a SIMD lane

// The samples of one row of an RoI's bins, in columns of its crop: sample after sample of kBins bins, then those of the
// next kBins bins. Outside the crop, and where a bin has fewer samples than others, weights are 0.
struct ColumnTable {
    std::vector<int32_t> low, high;
    std::vector<float> weights_low, weights_high;
    int64_t blocks, samples;  // of kBins bins; of each bin
    int64_t first, last;      // the columns that the samples need; none if first >= last

    // x: the samples in columns of the canvas.
    void build(const AxisTable& x, int64_t bins, const CropAxis& crop) {
        blocks = (bins + kBins - 1) / kBins;
        samples = 0;
        first = crop.size, last = 0;
        for (int64_t bin = 0; bin < bins; ++bin) samples = std::max<int64_t>(samples, x.end(bin) - x.begin(bin));
        const size_t count = blocks * samples * kBins;
        low.assign(count, 0), high.assign(count, 0);
        weights_low.assign(count, 0.0f), weights_high.assign(count, 0.0f);
        for (int64_t bin = 0; bin < bins; ++bin) {
            int64_t at = bin / kBins * samples * kBins + bin % kBins;
            for (const Sample* sample = x.begin(bin); sample != x.end(bin); ++sample, at += kBins) {
                set(crop, sample->low, sample->weight_low, &low[at], &weights_low[at]);
                set(crop, sample->high, sample->weight_high, &high[at], &weights_high[at]);
            }
        }
    }

private:
    void set(const CropAxis& crop, int64_t cell, float weight, int32_t* column, float* weight_out) {
        if (!crop.holds(cell) || weight == 0.0f) return;
        *column = int32_t(cell - crop.origin);
        *weight_out = weight;
        first = std::min<int64_t>(first, *column);
        last = std::max<int64_t>(last, *column + 1);
    }
};

// The pixels of one row of the canvas, as the samples of a ColumnTable need them.
struct SampledRow {
    std::vector<float> low, high;
    int64_t row = -1;
    bool blank;  // nothing but zeros

    void read(const MaskCrop& crop, int64_t cell, const ColumnTable& columns, std::vector<float>& line) {
        if (cell == row) return;
        row = cell;
        int any = 0;
        if (crop.y.holds(cell)) {
            const uint8_t* pixels = crop.pixels + (cell - crop.y.origin) * crop.x.size;
            for (int64_t x = columns.first; x < columns.last; ++x) any |= pixels[x], line[x] = pixels[x];
        }
        blank = any == 0;
        const int64_t count = columns.low.size();
        if (blank) {
            std::fill_n(low.begin(), count, 0.0f), std::fill_n(high.begin(), count, 0.0f);
            return;
        }
        for (int64_t i = 0; i < count; ++i) low[i] = line[columns.low[i]], high[i] = line[columns.high[i]];
    }
};

// A thread's memory for crop_mask.
struct MaskTables {
    AxisTable y, x;
    ColumnTable columns;
    std::vector<float> line;  // of the crop
    SampledRow rows[2];       // the even and the odd row of the canvas that were read last
};

// Adds one row of samples to a row of bins.
void add_samples(const Sample& y, const ColumnTable& columns, const SampledRow& low, const SampledRow& high,
                 float* sums) {
    for (int64_t block = 0; block < columns.blocks; ++block, sums += kBins) {
        float bins[kBins];
        std::copy_n(sums, kBins, bins);
        for (int64_t i = block * columns.samples * kBins; i < (block + 1) * columns.samples * kBins; i += kBins) {
#pragma omp simd
            for (int64_t bin = 0; bin < kBins; ++bin) {
                const Sample x = {0, 0, columns.weights_low[i + bin], columns.weights_high[i + bin]};
                bins[bin] += RoiAlign::interpolate(y, x, low.low[i + bin], low.high[i + bin], high.low[i + bin],
                                                   high.high[i + bin]);
            }
        }
        std::copy_n(bins, kBins, sums);
    }
}

// One RoI of a mask: out is [bins_y, bins_x].
void crop_mask(const MaskCrop& crop, const float* box, int64_t bins_y, int64_t bins_x, MaskTables& tables, float* out) {
    std::fill_n(out, bins_y * bins_x, 0.0f);
    const Axis y_axis = mask_axis(box[0], box[2], bins_y, crop.y), x_axis = mask_axis(box[1], box[3], bins_x, crop.x);
    tables.y.build<RoiAlign>(y_axis, bins_y, 1);
    tables.x.build<RoiAlign>(x_axis, bins_x, 1);
    ColumnTable& columns = tables.columns;
    columns.build(tables.x, bins_x, crop.x);
    if (columns.first >= columns.last) return;
    tables.line.assign(crop.x.size, 0.0f);  // samples without weight look at column 0, whether it is read or not
    for (SampledRow& row : tables.rows) {
        row.low.resize(columns.low.size()), row.high.resize(columns.low.size());
        row.row = -1;
    }
    std::vector<float> sums(columns.blocks * kBins);
    const float count = RoiAlign::count(y_axis, x_axis);
    for (int64_t bin = 0; bin < bins_y; ++bin) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (const Sample* y = tables.y.begin(bin); y != tables.y.end(bin); ++y) {
            SampledRow &low = tables.rows[y->low % 2], &high = tables.rows[y->high % 2];
            if (!(crop.y.holds(y->low) || crop.y.holds(y->high))) continue;
            low.read(crop, y->low, columns, tables.line);
            high.read(crop, y->high, columns, tables.line);
            if (!(low.blank && high.blank)) add_samples(*y, columns, low, high, sums.data());
        }
        for (int64_t x = 0; x < bins_x; ++x) out[bin * bins_x + x] = sums[x] / count;
    }
}

// The part of a mask that lies in a box.
double mask_area(const MaskCrop& crop, const float* box) {
    const Span y = find_span(box[0], box[2], crop.y), x = find_span(box[1], box[3], crop.x);
    if (x.first >= x.last) return 0.0;
    double area = 0.0;
    for (int64_t row = y.first; row < y.last; ++row) {
        const uint8_t* pixels = crop.pixels + row * crop.x.size;
        int64_t whole = 0;  // of the columns between the first and the last
        for (int64_t column = x.first + 1; column < x.last - 1; ++column) whole += pixels[column];
        double sum = double(whole) + x.share(x.first) * pixels[x.first];
        if (x.first < x.last - 1) sum += x.share(x.last - 1) * pixels[x.last - 1];
        area += y.share(row) * sum;
    }
    return area;
}

}  // namespace

// Pools the levels of pooling into pooled, or, backward, sets the levels to the gradient of what was pooled; they are
// then dense, float32 and uninitialised. Every image and level of the RoIs must exist.
//
// crop: crop_and_resize, else roi_align.
// dtype: of pooled and, forward, of the levels: 0 float32, 1 bfloat16.
// Returns 0, or 1 if memory ran out.
extern "C" int roi_pool_cpu(const Pooling* pooling, const Rois* rois, const Pooled* pooled, int crop, int backward,
                            int dtype, int threads) {
    return (dtype == 1 ? run<BFloat16> : run<float>)(*pooling, *rois, *pooled, crop, backward, threads);
}

// RoIAlign of masks; the RoIs' images are their masks. crops: [RoIs, bins_y, bins_x], dense; zeros for a mask that does
// not exist. Returns 0, or 1 if memory ran out.
extern "C" int crop_masks_cpu(const MaskCrops* masks, const Rois* rois, int64_t bins_y, int64_t bins_x, float* crops,
                              int threads) {
    Guard guard;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        MaskTables tables;
#pragma omp for schedule(dynamic)
        for (int64_t roi = 0; roi < rois->count; ++roi)
            guard.run([&] {
                crop_mask(find_mask(*masks, rois->image[roi]), rois->boxes + 4 * roi, bins_y, bins_x, tables,
                          crops + roi * bins_y * bins_x);
            });
    }
    return guard.result();
}

// Areas of masks inside boxes, [RoIs]; the RoIs' images are their masks. 0 for a mask that does not exist. Returns 0.
extern "C" int mask_areas_cpu(const MaskCrops* masks, const Rois* rois, float* areas, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t roi = 0; roi < rois->count; ++roi)
        areas[roi] = float(mask_area(find_mask(*masks, rois->image[roi]), rois->boxes + 4 * roi));
    return 0;
}
