// RoIAlign and crop_and_resize on CUDA, forward and backward, and masks under RoIs. C ABI: see the end.
//
// A pack of channels of one bin is the unit of work: four neighbouring channels, read at once, where channels are
// interleaved (channels_last), and one elsewhere. Neighbouring threads do packs that lie side by side in the result.

#include "mask_crop.h"
#include "roi_align.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

using namespace roi;

// Keeps the parameter where the launch put it, rather than in each thread's local memory.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
#define GRID_CONSTANT __grid_constant__
#else
#define GRID_CONSTANT
#endif

constexpr int kThreads = 256;
constexpr int64_t kMaxGridY = 65535;
constexpr int kPacksPerThread = 4;  // of one RoI, so that what all its bins share is worth computing

__device__ float load(float value) { return value; }
__device__ float load(__half value) { return __half2float(value); }
__device__ float load(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ void store(float value, float* out) { *out = value; }
__device__ void store(float value, __half* out) { *out = __float2half_rn(value); }
__device__ void store(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }

// kWidth channels that are read and written at once.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
    T values[kWidth];
};

// What all bins of an RoI share.
struct RoiOnMap {
    const Level* level;  // null: the RoI's image or level does not exist
    int64_t image_offset;
    Axis y, x;
};

template <class Rule>
__device__ RoiOnMap find_roi(const Pooling& pooling, const Rois& rois, int64_t index) {
    RoiOnMap roi = {};
    const int64_t image = rois.image[index], level = rois.level ? rois.level[index] : 0;
    if (image < 0 || image >= pooling.image_count || level < 0 || level >= pooling.level_count) return roi;
    roi.level = &pooling.levels[level];
    roi.image_offset = image * roi.level->image_stride;
    const float* box = rois.boxes + 4 * index;
    roi.y = Rule::axis(pooling, *roi.level, box[0], box[2], pooling.bins_y, roi.level->height);
    roi.x = Rule::axis(pooling, *roi.level, box[1], box[3], pooling.bins_x, roi.level->width);
    return roi;
}

// A pack of channels of one bin.
struct Place {
    int channel, y, x;
};

// The pack that a number below bins_y * bins_x * packs stands for: channels vary fastest if interleaved, else slowest.
__device__ Place find_place(const Pooling& pooling, int number, int packs, int width, bool interleaved) {
    const int bins_x = pooling.bins_x, bins = pooling.bins_y * pooling.bins_x;
    const int pack = interleaved ? number % packs : number / bins;
    const int bin = interleaved ? number / packs : number % bins;
    return {pack * width, bin / bins_x, bin % bins_x};
}

// Calls visit(y, x) for every sample of a bin that lies on the feature map, low and high in elements.
template <class Rule, class Visit>
__device__ void for_each_sample(const RoiOnMap& roi, const Place& place, Visit visit) {
    int64_t y_first, y_last, x_first, x_last;
    Rule::range(roi.y, place.y, &y_first, &y_last);
    Rule::range(roi.x, place.x, &x_first, &x_last);
    Sample y, x;
    for (int64_t i = y_first; i < y_last; ++i) {
        if (!Rule::sample(roi.y, place.y, i, &y)) continue;
        y.low *= roi.level->row_stride;
        y.high *= roi.level->row_stride;
        for (int64_t j = x_first; j < x_last; ++j) {
            if (!Rule::sample(roi.x, place.x, j, &x)) continue;
            x.low *= roi.level->column_stride;
            x.high *= roi.level->column_stride;
            visit(y, x);
        }
    }
}

// Calls visit(roi, place, element) for the packs that this thread has to do; element is the pack's in pooled.
// The blocks of the grid are RoIs times shares of their packs.
template <class Rule, class Visit>
__device__ void for_each_pack(const Pooling& pooling, const Rois& rois, const Pooled& pooled, int width,
                              bool interleaved, Visit visit) {
    const int64_t index = blockIdx.x;
    const RoiOnMap roi = find_roi<Rule>(pooling, rois, index);
    const int packs = pooling.channels / width, count = pooling.bins_y * pooling.bins_x * packs;
    constexpr int kShare = kThreads * kPacksPerThread;
    for (int64_t begin = int64_t(blockIdx.y) * kShare; begin < count; begin += int64_t(gridDim.y) * kShare)
        for (int64_t number = begin + threadIdx.x; number < begin + kShare && number < count; number += kThreads) {
            const Place place = find_place(pooling, number, packs, width, interleaved);
            visit(roi, place, index * pooled.roi_stride + place.channel * pooled.channel_stride +
                                  place.y * pooled.row_stride + place.x * pooled.column_stride);
        }
}

template <class Rule, class T, int kWidth>
__global__ void pool_rois(const GRID_CONSTANT Pooling pooling, Rois rois, Pooled pooled) {
    using Channels = Pack<T, kWidth>;
    const bool interleaved = pooled.channel_stride == 1;
    for_each_pack<Rule>(pooling, rois, pooled, kWidth, interleaved, [&](const RoiOnMap& roi, const Place& place,
                                                                        int64_t element) {
        float sums[kWidth] = {};
        bool any = false;
        if (roi.level) {
            const T* image = static_cast<const T*>(roi.level->data) + roi.image_offset +
                             place.channel * roi.level->channel_stride;
            for_each_sample<Rule>(roi, place, [&](const Sample& y, const Sample& x) {
                any = true;
                const Channels low_low = *reinterpret_cast<const Channels*>(image + y.low + x.low);
                const Channels low_high = *reinterpret_cast<const Channels*>(image + y.low + x.high);
                const Channels high_low = *reinterpret_cast<const Channels*>(image + y.high + x.low);
                const Channels high_high = *reinterpret_cast<const Channels*>(image + y.high + x.high);
#pragma unroll
                for (int c = 0; c < kWidth; ++c)
                    sums[c] += Rule::interpolate(y, x, load(low_low.values[c]), load(low_high.values[c]),
                                                 load(high_low.values[c]), load(high_high.values[c]));
            });
        }
        const float count = Rule::count(roi.y, roi.x), outside = roi.level ? pooling.outside : 0.0f;
        Channels result;
#pragma unroll
        for (int c = 0; c < kWidth; ++c) store(any ? sums[c] / count : outside, &result.values[c]);
        *reinterpret_cast<Channels*>(static_cast<T*>(pooled.data) + element) = result;
    });
}

// Adds weight times shares to neighbouring channels; one instruction for four where the GPU and its compiler have it.
template <int kWidth>
__device__ void add(float* cell, float weight, const float* shares) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ >= 13
    if constexpr (kWidth == 4)
        atomicAdd(reinterpret_cast<float4*>(cell),
                  make_float4(weight * shares[0], weight * shares[1], weight * shares[2], weight * shares[3]));
    else
#endif
#pragma unroll
        for (int c = 0; c < kWidth; ++c) atomicAdd(cell + c, weight * shares[c]);
}

// The levels of pooling are float32 gradients, filled with zeros.
template <class Rule, class T, int kWidth>
__global__ void spread_rois(const GRID_CONSTANT Pooling pooling, Rois rois, Pooled pooled) {
    const bool interleaved = pooling.levels[0].channel_stride == 1;
    for_each_pack<Rule>(pooling, rois, pooled, kWidth, interleaved, [&](const RoiOnMap& roi, const Place& place,
                                                                        int64_t element) {
        if (!roi.level) return;
        float* image = static_cast<float*>(const_cast<void*>(roi.level->data)) + roi.image_offset +
                       place.channel * roi.level->channel_stride;
        const T* grads = static_cast<const T*>(pooled.data) + element;
        const float count = Rule::count(roi.y, roi.x);
        float shares[kWidth];
#pragma unroll
        for (int c = 0; c < kWidth; ++c) shares[c] = load(grads[c * pooled.channel_stride]) / count;
        for_each_sample<Rule>(roi, place, [&](const Sample& y, const Sample& x) {
            add<kWidth>(image + y.low + x.low, y.weight_low * x.weight_low, shares);
            add<kWidth>(image + y.low + x.high, y.weight_low * x.weight_high, shares);
            add<kWidth>(image + y.high + x.low, y.weight_high * x.weight_low, shares);
            add<kWidth>(image + y.high + x.high, y.weight_high * x.weight_high, shares);
        });
    });
}

// Whether four channels lie together and aligned wherever a tensor with these strides has a multiple of four.
bool has_packs(const void* data, size_t element_bytes, int64_t channel_stride, int64_t a, int64_t b, int64_t c) {
    const bool aligned = reinterpret_cast<uintptr_t>(data) % (4 * element_bytes) == 0;
    return aligned && channel_stride == 1 && a % 4 == 0 && b % 4 == 0 && c % 4 == 0;
}

// Whether the kernel may work on four channels at once. Backward, the gradient is read one by one.
bool works_on_packs(const Pooling& pooling, const Pooled& pooled, bool backward, size_t element_bytes) {
    if (pooling.channels % 4 != 0) return false;
    for (const Level* level = pooling.levels; level != pooling.levels + pooling.level_count; ++level)
        if (!has_packs(level->data, backward ? sizeof(float) : element_bytes, level->channel_stride,
                       level->image_stride, level->row_stride, level->column_stride))
            return false;
    return backward || has_packs(pooled.data, element_bytes, pooled.channel_stride, pooled.roi_stride,
                                 pooled.row_stride, pooled.column_stride);
}

cudaError_t fill_zeros(const Pooling& pooling, cudaStream_t stream) {
    for (const Level* level = pooling.levels; level != pooling.levels + pooling.level_count; ++level) {
        const int64_t count = pooling.image_count * pooling.channels * level->height * level->width;
        const cudaError_t error = cudaMemsetAsync(const_cast<void*>(level->data), 0, count * sizeof(float), stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

template <class Rule, class T, int kWidth>
cudaError_t launch(const Pooling& pooling, const Rois& rois, const Pooled& pooled, bool backward, cudaStream_t stream) {
    const int64_t packs = pooling.bins_y * pooling.bins_x * (pooling.channels / kWidth);
    if (packs > INT32_MAX || rois.count > INT32_MAX) return cudaErrorInvalidValue;  // packs: of one RoI
    const int64_t shares = (packs + kThreads * kPacksPerThread - 1) / (kThreads * kPacksPerThread);
    const dim3 blocks(rois.count, shares < kMaxGridY ? shares : kMaxGridY);
    if (backward) spread_rois<Rule, T, kWidth><<<blocks, kThreads, 0, stream>>>(pooling, rois, pooled);
    else pool_rois<Rule, T, kWidth><<<blocks, kThreads, 0, stream>>>(pooling, rois, pooled);
    return cudaGetLastError();
}

template <class Rule, class T>
cudaError_t run(const Pooling& pooling, const Rois& rois, const Pooled& pooled, bool backward, cudaStream_t stream) {
    if (backward) {
        const cudaError_t error = fill_zeros(pooling, stream);
        if (error != cudaSuccess) return error;
    }
    if (rois.count == 0 || pooling.channels == 0) return cudaSuccess;
    if (works_on_packs(pooling, pooled, backward, sizeof(T)))
        return launch<Rule, T, 4>(pooling, rois, pooled, backward, stream);
    return launch<Rule, T, 1>(pooling, rois, pooled, backward, stream);
}

template <class T>
cudaError_t run_rule(const Pooling& pooling, const Rois& rois, const Pooled& pooled, bool crop, bool backward,
                     cudaStream_t stream) {
    return (crop ? run<CropAndResize, T> : run<RoiAlign, T>)(pooling, rois, pooled, backward, stream);
}

////////////////////////////////////////////////////////////
//  Masks
////////////////////////////////////////////////////////////

// A thread does one bin. crops: [RoIs, bins_y, bins_x].
__global__ void crop_masks(MaskCrops masks, Rois rois, int64_t bins_y, int64_t bins_x, float* crops) {
    const int64_t element = int64_t(blockIdx.x) * kThreads + threadIdx.x, index = element / (bins_y * bins_x);
    if (index >= rois.count) return;
    const int64_t bin_y = element / bins_x % bins_y, bin_x = element % bins_x;
    const MaskCrop crop = find_mask(masks, rois.image[index]);
    const float* box = rois.boxes + 4 * index;
    const Axis y_axis = mask_axis(box[0], box[2], bins_y, crop.y), x_axis = mask_axis(box[1], box[3], bins_x, crop.x);
    int64_t y_first, y_last, x_first, x_last;
    RoiAlign::range(y_axis, bin_y, &y_first, &y_last);
    RoiAlign::range(x_axis, bin_x, &x_first, &x_last);
    float sum = 0.0f;
    Sample y, x;
    for (int64_t i = y_first; i < y_last; ++i) {
        if (!RoiAlign::sample(y_axis, bin_y, i, &y)) continue;
        if (!(crop.y.holds(y.low) || crop.y.holds(y.high))) continue;
        for (int64_t j = x_first; j < x_last; ++j)
            if (RoiAlign::sample(x_axis, bin_x, j, &x))
                sum += RoiAlign::interpolate(y, x, crop.at(y.low, x.low), crop.at(y.low, x.high),
                                             crop.at(y.high, x.low), crop.at(y.high, x.high));
    }
    crops[element] = sum / RoiAlign::count(y_axis, x_axis);
}

// A block does one box, its threads neighbouring columns. Sums are made in the same order every time.
__global__ void add_areas(MaskCrops masks, Rois rois, float* areas) {
    __shared__ double sums[kThreads];
    const MaskCrop crop = find_mask(masks, rois.image[blockIdx.x]);
    const float* box = rois.boxes + 4 * int64_t(blockIdx.x);
    const Span y = find_span(box[0], box[2], crop.y), x = find_span(box[1], box[3], crop.x);
    double sum = 0.0;
    for (int64_t column = x.first + threadIdx.x; column < x.last; column += kThreads) {
        const auto pixel = [&](int64_t row) { return crop.pixels[row * crop.x.size + column]; };
        int64_t whole = 0;  // of the rows between the first and the last
        for (int64_t row = y.first + 1; row < y.last - 1; ++row) whole += pixel(row);
        double share = double(whole);
        if (y.first < y.last) share += y.share(y.first) * pixel(y.first);
        if (y.first < y.last - 1) share += y.share(y.last - 1) * pixel(y.last - 1);
        sum += x.share(column) * share;
    }
    sums[threadIdx.x] = sum;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) areas[blockIdx.x] = float(sums[0]);
}

}  // namespace

// Pools the levels of pooling into pooled, or, backward, sets the levels to the gradient of what was pooled; they are
// then dense, float32 and uninitialised. On the current device and the given stream.
// An RoI whose image or level does not exist pools to zeros.
//
// crop: crop_and_resize, else roi_align.
// dtype: of pooled and, forward, of the levels: 0 float32, 1 bfloat16, 2 float16.
// Returns null, or the text of the error.
extern "C" const char* roi_pool_cuda(const Pooling* pooling, const Rois* rois, const Pooled* pooled, int crop,
                                     int backward, int dtype, cudaStream_t stream) {
    const auto run_dtype = dtype == 0 ? run_rule<float> : dtype == 1 ? run_rule<__nv_bfloat16> : run_rule<__half>;
    const cudaError_t error = run_dtype(*pooling, *rois, *pooled, crop, backward, stream);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// RoIAlign of masks; the RoIs' images are their masks. crops: [RoIs, bins_y, bins_x], dense; zeros for a mask that does
// not exist. Returns null, or the text of the error.
extern "C" const char* crop_masks_cuda(const MaskCrops* masks, const Rois* rois, int64_t bins_y, int64_t bins_x,
                                       float* crops, cudaStream_t stream) {
    const int64_t blocks = (rois->count * bins_y * bins_x + kThreads - 1) / kThreads;
    if (blocks > INT32_MAX) return cudaGetErrorString(cudaErrorInvalidValue);
    if (blocks == 0) return nullptr;
    crop_masks<<<dim3(blocks), kThreads, 0, stream>>>(*masks, *rois, bins_y, bins_x, crops);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Areas of masks inside boxes, [RoIs]; the RoIs' images are their masks. 0 for a mask that does not exist. Returns null,
// or the text of the error.
extern "C" const char* mask_areas_cuda(const MaskCrops* masks, const Rois* rois, float* areas, cudaStream_t stream) {
    if (rois->count == 0) return nullptr;
    if (rois->count > INT32_MAX) return cudaGetErrorString(cudaErrorInvalidValue);
    add_areas<<<dim3(rois->count), kThreads, 0, stream>>>(*masks, *rois, areas);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
