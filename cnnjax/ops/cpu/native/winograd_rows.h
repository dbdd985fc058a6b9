// Convolutions of 5x5 windows and stride 1 in float32 by Winograd's method along the rows alone.
//
// 8 pixels of a row give what one row of the window adds to 4 outputs, with 8 products in place of 20. The products of
// its five rows are summed before they are transformed to the outputs, so the transformations are few; in both
// directions (2x2 outputs) 5x5 windows would need 9 products an output in place of these 10, and four times the
// transformed numbers. The points are 0, 1/2, -1/2, 1, -1, 2, -2 and infinity.
#pragma once

#include "winograd_tiles.h"

namespace cnnjax {
namespace {
namespace rows {

constexpr int kSide = 8;                     // points
constexpr int64_t kWindow = 5;               // rows of the window and taps of a row
constexpr int64_t kStaying = 320;            // channels times rows whose weights stay in the first-level cache
constexpr int64_t kStripBytes = 192 * 1024;  // of transformed pixels at a time
constexpr int64_t kFewest = 4;               // rows of outputs in a strip, since it needs 4 more rows of pixels

// A pair of points p and -p: the square of p, those of the two other pairs, and what the weights are divided by.
struct Pair {
  float p, square, sum, product;
  constexpr Pair(float p, float q, float r)
      : p(p), square(p * p), sum(q * q + r * r), product(q * q * r * r) {}
  constexpr float scale() const { return 1 / (2 * square * (square * square - sum * square + product)); }
};
constexpr Pair kPairs[] = {{0.5f, 1, 2}, {1, 0.5f, 2}, {2, 0.5f, 1}};
constexpr float kSum = 0.25f + 1 + 4, kProducts = 0.25f * 1 + 0.25f * 4 + 1 * 4, kProduct = 0.25f * 1 * 4;

CNNJAX_INLINE void input_step(const Vector* d, Vector* v) {
  v[0] = d[6] - all(kSum) * d[4] + all(kProducts) * d[2] - all(kProduct) * d[0];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Pair& pair = kPairs[i];
    Vector even = d[6] - all(pair.sum) * d[4] + all(pair.product) * d[2];
    Vector odd = all(pair.p) * (d[5] - all(pair.sum) * d[3] + all(pair.product) * d[1]);
    v[2 * i + 1] = even + odd;
    v[2 * i + 2] = even - odd;
  }
  v[7] = d[7] - all(kSum) * d[5] + all(kProducts) * d[3] - all(kProduct) * d[1];
}

CNNJAX_INLINE void kernel_step(const Vector* w, Vector* u) {
  u[0] = all(-1 / kProduct) * w[0];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Pair& pair = kPairs[i];
    Vector even = w[0] + all(pair.square) * (w[2] + all(pair.square) * w[4]);
    Vector odd = all(pair.p) * (w[1] + all(pair.square) * w[3]);
    u[2 * i + 1] = all(pair.scale()) * (even + odd);
    u[2 * i + 2] = all(pair.scale()) * (even - odd);
  }
  u[7] = w[4];
}

CNNJAX_INLINE void kernel_step_transposed(const Vector* u, Vector* w) {
  w[0] = all(-1 / kProduct) * u[0];
  w[1] = w[2] = w[3] = all(0);
  w[4] = u[7];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Pair& pair = kPairs[i];
    Vector even = all(pair.scale()) * (u[2 * i + 1] + u[2 * i + 2]);
    Vector odd = all(pair.scale() * pair.p) * (u[2 * i + 1] - u[2 * i + 2]);
    w[0] += even, w[1] += odd;
    w[2] += all(pair.square) * even, w[3] += all(pair.square) * odd;
    w[4] += all(pair.square * pair.square) * even;
  }
}

CNNJAX_INLINE void output_step(const Vector* m, Vector* y) {
  y[0] = m[0];
  y[1] = y[2] = all(0);
  y[3] = m[7];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Pair& pair = kPairs[i];
    Vector even = m[2 * i + 1] + m[2 * i + 2], odd = all(pair.p) * (m[2 * i + 1] - m[2 * i + 2]);
    y[0] += even, y[1] += odd;
    y[2] += all(pair.square) * even, y[3] += all(pair.square) * odd;
  }
}

CNNJAX_INLINE void output_step_transposed(const Vector* y, Vector* m) {
  m[0] = y[0];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Pair& pair = kPairs[i];
    Vector even = y[0] + all(pair.square) * y[2], odd = all(pair.p) * (y[1] + all(pair.square) * y[3]);
    m[2 * i + 1] = even + odd;
    m[2 * i + 2] = even - odd;
  }
  m[7] = y[3];
}

using Step = void (*)(const Vector*, Vector*);

// The tiles of `rows` rows of kCount pixels each, 4 pixels apart, transformed: `channels` numbers of each tile at each
// of the points `apart`.
template <int kCount, Step step>
CNNJAX_VECTORS void transform_rows(const Layer& l, const float* data, const Images& images, Place first, int64_t rows,
                                   int64_t channels, const float* zeros, float* to, int64_t stride, int64_t apart) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t tile = 0; tile < across(l); ++tile, to += stride) {
      const float* pixels[kCount];
      Place place = {first.image, first.row + row, first.column + tile * kOut};
      find_pixels<1, kCount>(data, images, place, zeros, pixels);
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vector from[kCount], done[kSide];
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) from[i] = load(pixels[i] + c);
        step(from, done);
#pragma GCC unroll 8
        for (int i = 0; i < kSide; ++i) store(to + i * apart + c, done[i]);
      }
    }
  }
}

// One row of the window: the transformed weights of one input channel and 16 output channels.
CNNJAX_VECTORS void transform_kernel(const Layer& l, const float* kernel, int64_t row, int64_t outputs, float* to,
                                     int64_t apart) {
  float packed[kWindow][kWide];
  pack_kernel<kWindow * kWindow, kWindow>(l, kernel, row * kWindow, outputs, packed);
  for (int64_t k = 0; k < kWide; k += kLanes) {
    Vector from[kWindow], done[kSide];
#pragma GCC unroll 5
    for (int t = 0; t < kWindow; ++t) from[t] = load(packed[t] + k);
    kernel_step(from, done);
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) store(to + i * apart + k, done[i]);
  }
}

// The outputs of `rows` rows of tiles from their sums.
CNNJAX_VECTORS void transform_outputs(const Layer& l, Place first, int64_t rows, const float* m, int64_t m_row,
                                      int64_t apart, const Ends& ends, int64_t channels, float* y) {
  for (int64_t row = 0; row < rows; ++row) {
    float* to = y + (first.image * l.out.height + first.row + row) * l.out.width * l.out.all;
    for (int64_t tile = 0; tile < across(l); ++tile, m += m_row, to += kOut * l.out.all) {
      int64_t columns = std::min(kOut, l.out.width - tile * kOut);
      for (int64_t k = 0; k < channels; k += kLanes) {
        Vector from[kSide], done[kOut];
#pragma GCC unroll 8
        for (int i = 0; i < kSide; ++i) from[i] = load(m + i * apart + k);
        output_step(from, done);
        Vector more = ends.bias ? load(ends.bias + k) : all(0);
        for (int64_t i = 0; i < columns; ++i) {
          float* at = to + i * l.out.all + k;
          store(at, bounded(done[i] + (ends.adds ? more + load(at) : more), ends));
        }
      }
    }
  }
}

// The taps of one channel in one row of the window from the sums of all tiles, a vector of filters at a time.
CNNJAX_VECTORS void transform_sums(const float* sums, int64_t apart, int64_t filters, float* dkernel, int64_t tap) {
  for (int64_t k = 0; k < filters; k += kLanes) {
    Vector from[kSide], done[kWindow];
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) from[i] = load(sums + i * apart + k);
    kernel_step_transposed(from, done);
#pragma GCC unroll 5
    for (int i = 0; i < kWindow; ++i) store(dkernel + i * tap + k, done[i]);
  }
}

// Nearly equal strips of rows of outputs, whose transformed pixels of `depth` channels stay in the second-level
// cache where they can. There are as many as threads, unless they would be too few rows.
struct Strips {
  Strips(const Layer& l, int64_t depth, int64_t threads = 1)
      : height(l.out.height), across(cnnjax::across(l)), depth(depth) {
    int64_t row = kSide * across * depth * sizeof(float), share = parts_of(height, parts_of(threads, l.groups * l.count));
    int64_t most = std::min(std::max(std::min(kStripBytes / row - (kWindow - 1), share), kFewest), height);
    count = parts_of(height, most);
    rows = parts_of(height, count);
  }
  int64_t height, across, depth, count, rows;
  int64_t point(int64_t tall, int64_t numbers) const { return odd_lines(tall * across * numbers); }
  int64_t v_point() const { return point(rows + kWindow - 1, depth); }
  int64_t rows_of(int64_t strip) const { return std::min(rows, height - strip * rows); }
};

// What `winograd_convolution.h` wants of a convolution: the strips go through all channels and filters.
class Convolution {
 public:
  using T = float;

  Convolution(const Layer& layer, int64_t threads) : l(layer), depth(l.in.channels), strips(l, depth, threads) {
    most = std::clamp<int64_t>(kStaying / depth, 1, kWindow);
    u_point = odd_lines(kWindow * depth * kWide), panel = kSide * u_point;
    m_row = std::min(kGroup, panels(l) * kWide), m_point = strips.point(strips.rows, m_row), v_point = strips.v_point();
  }
  int64_t weights() const { return l.groups * panels(l) * panel; }
  int64_t zeros() const { return odd_lines(depth); }
  int64_t each() const { return kSide * (v_point + m_point); }
  int64_t pack_calls() const { return l.groups * panels(l) * kWindow * depth; }
  int64_t run_calls() const { return l.groups * l.count * strips.count; }

  void pack(const float* kernel, int64_t index, float* u) const {
    int64_t c = index % depth, row = index / depth % kWindow, block = index / depth / kWindow;
    int64_t k = block % panels(l) * kWide, group = block / panels(l);
    const float* from = kernel + c * l.input + (group * l.out.channels + k) * l.output;
    if (l.flipped) from = kernel + (group * depth + c) * l.input + k * l.output;
    float* to = u + block * panel + (row * depth + c) * kWide;
    transform_kernel(l, from, row, std::min(kWide, l.out.channels - k), to, u_point);
  }

  void run(const float* u, const float* x, const Ends& ends, float* y, float* scratch, int64_t index) const {
    float *v = scratch + zeros() + omp_get_thread_num() * each(), *m = v + kSide * v_point;
    int64_t group = index / (l.count * strips.count), strip = index % strips.count;
    int64_t rows = strips.rows_of(strip), tiles = rows * across(l);
    Place first = {index / strips.count % l.count, strip * strips.rows, 0};
    Place before = {first.image, first.row - l.top, -l.left};
    transform_rows<kSide, input_step>(l, x + group * depth, l.in, before, rows + kWindow - 1, depth, scratch, v, depth,
                                      v_point);
    for (int64_t filter = 0; filter < l.out.channels; filter += kGroup) {
      int64_t filters = std::min(kGroup, l.out.channels - filter);
      for (int64_t point = 0; point < kSide; ++point) {
        split(parts_of(filters, kWide), kPanels, [&](int64_t k, int64_t wide) {
          const float* some = u + (group * panels(l) + filter / kWide + k) * panel + point * u_point;
          for (int64_t row = 0; row < kWindow; row += most) {
            split(tiles, kTall, [&](int64_t t, int64_t tall) {
              const float* from = v + point * v_point + (row * across(l) + t) * depth;
              float* to = m + point * m_point + t * m_row + k * kWide;
              Versions<Multiply, Product>::run(
                  tall, wide, {from, depth, across(l) * depth, std::min(most, kWindow - row),
                               some + row * depth * kWide, panel, depth, row > 0, to, m_row});
            });
          }
        });
      }
      int64_t k = group * l.out.channels + filter;
      Ends own = ends;
      if (ends.bias) own.bias += k;
      transform_outputs(l, first, rows, m, m_row, m_point, own, filters, y + k);
    }
  }

 private:
  const Layer& l;
  int64_t depth;
  Strips strips;
  int64_t most, u_point, panel, m_row, m_point, v_point;  // `most` rows of the window at a time
};

void kernel_gradient(const Layer& l, Turn& turn, const float* x, const float* dy, float* dkernel) {
  Division division(l);
  int64_t depth = division.depth, width = division.width;
  Strips strips(l, depth);
  int64_t v_point = strips.v_point(), d_point = strips.point(strips.rows, width);
  int64_t sum_point = odd_lines(kWindow * depth * width), size = kSide * (v_point + d_point + sum_point);
  divide(l, division, turn, size, x, dy, dkernel, [&](const Part<float>& part, const float* zeros, float* v) {
    float *d = v + kSide * v_point, *sums = d + kSide * d_point;
    std::fill_n(sums, kSide * sum_point, 0.0f);
    for (int64_t strip = 0; strip < l.count * strips.count; ++strip) {
      int64_t rows = strips.rows_of(strip % strips.count);
      Place first = {strip / strips.count, strip % strips.count * strips.rows, 0};
      transform_rows<kOut, output_step_transposed>(l, part.dy, l.out, first, rows, part.filters, zeros, d, width,
                                                   d_point);
      first.row -= l.top, first.column -= l.left;
      transform_rows<kSide, input_step>(l, part.x, l.in, first, rows + kWindow - 1, part.channels, zeros, v, depth,
                                        v_point);
      for (int64_t point = 0; point < kSide; ++point)
        for (int64_t row = 0; row < kWindow; ++row)
          correlate(v + point * v_point + row * across(l) * depth, depth, part.channels, d + point * d_point, width,
                    part.filters, rows * across(l), sums + point * sum_point + row * depth * width);
    }
    for (int64_t row = 0; row < kWindow; ++row)
      for (int64_t i = 0; i < part.channels; ++i)
        transform_sums(sums + (row * depth + i) * width, sum_point, part.filters,
                       part.dkernel + row * kWindow * l.tap + i * l.input, l.tap);
  });
}

}  // namespace rows
}  // namespace
}  // namespace cnnjax
