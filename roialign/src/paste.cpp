// Predicted masks at their places in an image, and COCO's run-length codes of them, on the CPU. C ABI: see the end.
//
// Only the pixels that a box covers are visited; the others are 0. A mask is sampled across first and then down, as in
// reference.py: only in this order are the sums the same.

#include "paste.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

using namespace paste;

// The masks of one image: probs [count, rows, columns], boxes [count, (y1, x1, y2, x2)].
struct Pasting {
    const void* probs;
    const float* boxes;
    int64_t count, rows, columns;
    int64_t height, width;  // of the image
    int64_t rule;           // a RuleCode
    int64_t dtype;          // of probs: 0 float, 1 double
};

// The taps of consecutive pixels, one array for each field, so that the compiler can vectorise loops over them.
template <class Number>
struct Taps {
    std::vector<int32_t> cells;
    std::vector<Number> lows, highs;

    template <class Rule>
    void build(const Rule& axis, int64_t cell_count) {
        const int64_t count = axis.span.end - axis.span.begin;
        cells.resize(count), lows.resize(count), highs.resize(count);
        for (int64_t i = 0; i < count; ++i) {
            const Tap<Number> tap = find_tap(axis, axis.span.begin + i, cell_count);
            cells[i] = int32_t(tap.cell), lows[i] = tap.low, highs[i] = tap.high;
        }
    }

    // The value of a pixel on a line of cells.
    Number sample(const Number* line, int64_t pixel) const {
        const int32_t cell = cells[pixel];
        return blend(line[cell], lows[pixel], line[cell + 1], highs[pixel]);
    }
};

// A mask with zeros around it.
template <class Number>
struct PaddedMask {
    std::vector<Number> values;  // line by line: rows, or columns if it was read transposed
    int64_t length;              // cells of a line
    Number smallest;             // of the values that are not padding

    // Returns: whether all values are finite.
    bool read(const Pasting& pasting, int64_t index, bool transposed) {
        const int64_t first = index * pasting.rows * pasting.columns;
        if (pasting.dtype == 1) return copy(static_cast<const double*>(pasting.probs) + first, pasting, transposed);
        return copy(static_cast<const float*>(pasting.probs) + first, pasting, transposed);
    }

    const Number* line(int64_t index) const { return values.data() + index * length; }

private:
    template <class T>
    bool copy(const T* probs, const Pasting& pasting, bool transposed) {
        const int64_t rows = pasting.rows, columns = pasting.columns;
        length = (transposed ? rows : columns) + 2 * kPadding;
        values.assign((rows + 2 * kPadding) * (columns + 2 * kPadding), Number(0));
        smallest = Number(probs[0]);
        bool finite = true;
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column) {
                const int64_t line = transposed ? column : row, cell = transposed ? row : column;
                const Number value = Number(probs[row * columns + column]);
                values[(line + kPadding) * length + cell + kPadding] = value;
                smallest = std::min(smallest, value);
                finite &= std::isfinite(value);
            }
        return finite;
    }
};

// The pixels that an instance covers, and where each of them samples the mask.
template <class Rule>
struct Crop {
    Rule y, x;
    bool is_empty;

    Crop(const Pasting& pasting, const float* box)
        : y(box[0], box[2], pasting.rows, pasting.height), x(box[1], box[3], pasting.columns, pasting.width) {
        const bool finite = std::all_of(box, box + 4, [](float number) { return std::isfinite(number); });
        is_empty = !finite || y.span.is_empty() || x.span.is_empty();
    }
};

////////////////////////////////////////////////////////////
//  Pixels
////////////////////////////////////////////////////////////

// Pastes masks row by row: samples two rows of the mask across, and blends each row of the image from them.
template <class Rule>
class RowPaster {
public:
    explicit RowPaster(const Pasting& pasting) : pasting(pasting) {}

    // image: [height, width].
    void paste(int64_t index, uint8_t* image) {
        const Crop<Rule> crop(pasting, pasting.boxes + 4 * index);
        if (crop.is_empty || !mask.read(pasting, index, false)) return;
        taps.build(crop.x, pasting.columns);
        const int64_t count = taps.cells.size();
        low.resize(count), high.resize(count);
        int64_t cell = -2;  // the row of the mask that low was sampled from
        for (int64_t row = crop.y.span.begin; row < crop.y.span.end; ++row) {
            const Tap<Number> tap = find_tap(crop.y, row, pasting.rows);
            if (tap.cell != cell) {
                if (tap.cell == cell + 1) low.swap(high);
                else sample_row(tap.cell, low);
                sample_row(tap.cell + 1, high);
                cell = tap.cell;
            }
            uint8_t* pixels = image + row * pasting.width + crop.x.span.begin;
            for (int64_t i = 0; i < count; ++i)
                pixels[i] = Rule::is_inside(blend(low[i], tap.low, high[i], tap.high), mask.smallest);
        }
    }

private:
    using Number = typename Rule::Number;

    void sample_row(int64_t row, std::vector<Number>& values) const {
        const Number* line = mask.line(row);
        for (size_t i = 0; i < values.size(); ++i) values[i] = taps.sample(line, i);
    }

    const Pasting& pasting;
    PaddedMask<Number> mask;
    Taps<Number> taps;  // of the columns of the image
    std::vector<Number> low, high;
};

template <class Rule>
void paste_masks(const Pasting& pasting, uint8_t* masks) {
    RowPaster<Rule> paster(pasting);
    for (int64_t i = 0; i < pasting.count; ++i) paster.paste(i, masks + i * pasting.height * pasting.width);
}

////////////////////////////////////////////////////////////
//  Run-length codes
////////////////////////////////////////////////////////////

// A buffer that codes are appended to. Characters beyond its capacity are counted, and not written.
struct CodeBuffer {
    uint8_t* data;
    int64_t capacity, size;

    void push(uint8_t character) {
        if (size < capacity) data[size] = character;
        ++size;
    }
};

// Writes COCO's code of one mask. Callers add its runs of equal pixels in order.
class Code {
public:
    explicit Code(CodeBuffer& buffer) : buffer(buffer) {}

    void add(bool value, int64_t length) {
        if (length == 0) return;
        if (value != current) finish();
        run += length;
    }

    // Writes the current run. Call it once more after the last run.
    void finish() {
        // From the fourth number on, COCO stores differences.
        write(count > 2 ? run - before_last : run);
        before_last = last;
        last = run;
        run = 0;
        ++count;
        current = !current;
    }

private:
    // Five bits a character, lowest first, and a sixth that says whether another follows; the highest bit is the sign.
    void write(int64_t number) {
        for (bool more = true; more;) {
            const int64_t bits = number & 31;
            number >>= 5;
            more = number != (bits & 16 ? -1 : 0);
            buffer.push(uint8_t((more ? bits | 32 : bits) + 48));
        }
    }

    CodeBuffer& buffer;
    bool current = false;
    int64_t run = 0, last = 0, before_last = 0;  // lengths
    int64_t count = 0;                           // of runs written
};

// The pixels of one column of a crop, each 0 or 1.
void add_column(const uint8_t* pixels, int64_t count, Code& code) {
    bool value = false;
    for (int64_t begin = 0; begin < count; value = !value) {
        const void* change = std::memchr(pixels + begin, !value, count - begin);
        const int64_t end = change ? static_cast<const uint8_t*>(change) - pixels : count;
        code.add(value, end - begin);
        begin = end;
    }
}

// Encodes masks, column by column of the image.
template <class Rule>
class ColumnCoder {
public:
    explicit ColumnCoder(const Pasting& pasting) : pasting(pasting) {}

    void encode(int64_t index, CodeBuffer& buffer) {
        Code code(buffer);
        const Crop<Rule> crop(pasting, pasting.boxes + 4 * index);
        if (crop.is_empty || !mask.read(pasting, index, true)) code.add(false, pasting.height * pasting.width);
        else add_crop(crop, code);
        code.finish();
    }

private:
    using Number = typename Rule::Number;

    void add_crop(const Crop<Rule>& crop, Code& code) {
        const Span y = crop.y.span, x = crop.x.span;
        taps.build(crop.y, pasting.rows);
        line.resize(mask.length), pixels.resize(taps.cells.size());
        code.add(false, x.begin * pasting.height);
        for (int64_t column = x.begin; column < x.end; ++column) {
            paste_column(find_tap(crop.x, column, pasting.columns));
            code.add(false, y.begin);
            add_column(pixels.data(), pixels.size(), code);
            code.add(false, pasting.height - y.end);
        }
        code.add(false, (pasting.width - x.end) * pasting.height);
    }

    void paste_column(const Tap<Number>& tap) {
        const Number *low = mask.line(tap.cell), *high = mask.line(tap.cell + 1);
        for (size_t i = 0; i < line.size(); ++i) line[i] = blend(low[i], tap.low, high[i], tap.high);
        for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = Rule::is_inside(taps.sample(line.data(), i), mask.smallest);
    }

    const Pasting& pasting;
    PaddedMask<Number> mask;  // transposed
    Taps<Number> taps;        // of the rows of the image
    std::vector<Number> line;
    std::vector<uint8_t> pixels;
};

template <class Rule>
void encode_masks(const Pasting& pasting, CodeBuffer& buffer, int64_t* ends) {
    ColumnCoder<Rule> coder(pasting);
    for (int64_t i = 0; i < pasting.count; ++i) {
        coder.encode(i, buffer);
        ends[i] = buffer.size;
    }
}

}  // namespace

// masks: [count, height, width] bytes, zeros on entry. Sets the pixels of each mask to 1.
// Returns 0, or 1 if memory ran out.
extern "C" int paste_masks_cpu(const Pasting* pasting, uint8_t* masks) {
    Guard guard;
    guard.run([&] {
        switch (pasting->rule) {
            case kCentres: return paste_masks<Centres>(*pasting, masks);
            case kExpand: return paste_masks<Expand>(*pasting, masks);
            case kResize: return paste_masks<Resize>(*pasting, masks);
        }
    });
    return guard.result();
}

// codes: receives COCO's compressed counts of all masks, one after another, at most capacity bytes. ends: [count],
// receives where each code ends.
// Returns: the bytes of all codes. If they are more than capacity, codes is incomplete: call again with more room.
// -1 if memory ran out.
extern "C" int64_t paste_rles_cpu(const Pasting* pasting, uint8_t* codes, int64_t capacity, int64_t* ends) {
    CodeBuffer buffer = {codes, capacity, 0};
    Guard guard;
    guard.run([&] {
        switch (pasting->rule) {
            case kCentres: return encode_masks<Centres>(*pasting, buffer, ends);
            case kExpand: return encode_masks<Expand>(*pasting, buffer, ends);
            case kResize: return encode_masks<Resize>(*pasting, buffer, ends);
        }
    });
    return guard.result() ? -1 : buffer.size;
}
