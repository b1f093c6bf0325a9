// Bilinear resampling of an image of bytes in whole numbers, as cv2.resize computes it, on the CPU. C ABI: see the end.

#include "../../native.h"

#include <algorithm>
#include <vector>

namespace {

// The two pixels of each place along an axis, and their weights of 2048: [2, count].
struct Axis {
    const int64_t* pixels;
    const int32_t* weights;
    int64_t count;
};

// One row of the image, mixed across: [columns.count, channels]. The numbers are 128 times those of the image.
template <int64_t fixed_channels>
void mix_across(const uint8_t* row, const Axis& columns, int64_t any_channels, int32_t* mixed) {
    const int64_t channels = fixed_channels ? fixed_channels : any_channels;
    for (int64_t x = 0; x < columns.count; ++x) {
        const uint8_t* left = row + columns.pixels[x] * channels;
        const uint8_t* right = row + columns.pixels[columns.count + x] * channels;
        const int32_t low = columns.weights[x], high = columns.weights[columns.count + x];
        for (int64_t c = 0; c < channels; ++c) mixed[x * channels + c] = (left[c] * low + right[c] * high) >> 4;
    }
}

template <int64_t fixed_channels>
void resize(const uint8_t* image, int64_t row_bytes, int64_t channels, const Axis& rows, const Axis& columns, uint8_t* result) {
    const int64_t length = columns.count * channels;
    std::vector<int32_t> lines[2] = {std::vector<int32_t>(length), std::vector<int32_t>(length)};
    int64_t held[2] = {-1, -1};  // the rows of the image that the lines have; neighbours have a line each
    for (int64_t y = 0; y < rows.count; ++y, result += length) {
        for (const int64_t row : {rows.pixels[y], rows.pixels[rows.count + y]}) {
            if (held[row & 1] == row) continue;
            mix_across<fixed_channels>(image + row * row_bytes, columns, channels, lines[row & 1].data());
            held[row & 1] = row;
        }
        const int32_t* upper = lines[rows.pixels[y] & 1].data();
        const int32_t* lower = lines[rows.pixels[rows.count + y] & 1].data();
        const int32_t low = rows.weights[y], high = rows.weights[rows.count + y];
        for (int64_t i = 0; i < length; ++i) result[i] = uint8_t(((upper[i] * low >> 16) + (lower[i] * high >> 16) + 2) >> 2);
    }
}

}  // namespace

// image: [.., width, channels], dense. result: [rows, columns, channels]. The two pixels of a place are the same or
// neighbours. Returns 1 if memory runs out, else 0.
extern "C" int resize_cpu(
    const uint8_t* image, int64_t width, int64_t channels, const int64_t* rows, const int32_t* row_weights, int64_t row_count,
    const int64_t* columns, const int32_t* column_weights, int64_t column_count, uint8_t* result) {
    const Axis down{rows, row_weights, row_count}, across{columns, column_weights, column_count};
    const int64_t row_bytes = width * channels;
    Guard guard;
    guard.run([&] {
        if (channels == 3) resize<3>(image, row_bytes, channels, down, across, result);
        else if (channels == 1) resize<1>(image, row_bytes, channels, down, across, result);
        else resize<0>(image, row_bytes, channels, down, across, result);
    });
    return guard.result();
}
