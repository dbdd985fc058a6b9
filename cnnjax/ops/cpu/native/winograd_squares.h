// Convolutions of 3x3 windows and stride 1 in float32 by Winograd's method (Lavin and Gray 2016).
//
// A tile of 6x6 inputs gives 4x4 outputs, with 36 products for each channel and filter in place of 144. Pixels and
// weights are transformed, multiplied at each of the 36 points, and summed over channels (over tiles, for the gradient
// of the kernel); the sums are transformed to the result. The points are 0, 3/4, -3/4, 3/2, -3/2 and infinity.
#pragma once

#include "winograd_convolution.h"

namespace cnnjax {
namespace {
namespace squares {

constexpr int kWindow = 3, kSide = 6, kPoints = kSide * kSide;
constexpr int64_t kTiles = 3 * kLanes;  // that are added to the kernel's gradient at a time
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// The three steps and the transposes of two of them in one dimension, from every `stride`-th vector to every `to`-th.
CNNJAX_INLINE void input_step(const Vector* d, int stride, Vector* v, int to) {
  Vector d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  Vector even_a = d4 - all(kB2) * d2, odd_a = all(kA) * (d3 - all(kB2) * d1);
  Vector even_b = d4 - all(kA2) * d2, odd_b = all(kB) * (d3 - all(kA2) * d1);
  v[0] = all(kA2 * kB2) * d0 - all(kA2 + kB2) * d2 + d4;
  v[to] = even_a + odd_a;
  v[2 * to] = even_a - odd_a;
  v[3 * to] = even_b + odd_b;
  v[4 * to] = even_b - odd_b;
  v[5 * to] = all(kA2 * kB2) * d1 - all(kA2 + kB2) * d3 + d5;
}

CNNJAX_INLINE void kernel_step(const Vector* w, int stride, Vector* u, int to) {
  constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
  Vector w0 = w[0], w1 = w[stride], w2 = w[2 * stride];
  Vector even_a = w0 + all(kA2) * w2, odd_a = all(kA) * w1, even_b = w0 + all(kB2) * w2, odd_b = all(kB) * w1;
  u[0] = all(1 / (kA2 * kB2)) * w0;
  u[to] = all(a) * (even_a + odd_a);
  u[2 * to] = all(a) * (even_a - odd_a);
  u[3 * to] = all(b) * (even_b + odd_b);
  u[4 * to] = all(b) * (even_b - odd_b);
  u[5 * to] = w2;
}

CNNJAX_INLINE void kernel_step_transposed(const Vector* u, int stride, Vector* w, int to) {
  constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
  Vector even_a = all(a) * (u[stride] + u[2 * stride]), odd_a = all(a * kA) * (u[stride] - u[2 * stride]);
  Vector even_b = all(b) * (u[3 * stride] + u[4 * stride]), odd_b = all(b * kB) * (u[3 * stride] - u[4 * stride]);
  w[0] = all(1 / (kA2 * kB2)) * u[0] + even_a + even_b;
  w[to] = odd_a + odd_b;
  w[2 * to] = all(kA2) * even_a + all(kB2) * even_b + u[5 * stride];
}

CNNJAX_INLINE void output_step(const Vector* m, int stride, Vector* y, int to) {
  Vector even_a = m[stride] + m[2 * stride], odd_a = all(kA) * (m[stride] - m[2 * stride]);
  Vector even_b = m[3 * stride] + m[4 * stride], odd_b = all(kB) * (m[3 * stride] - m[4 * stride]);
  y[0] = m[0] + even_a + even_b;
  y[to] = odd_a + odd_b;
  y[2 * to] = all(kA2) * even_a + all(kB2) * even_b;
  y[3 * to] = all(kA2) * odd_a + all(kB2) * odd_b + m[5 * stride];
}

CNNJAX_INLINE void output_step_transposed(const Vector* y, int stride, Vector* m, int to) {
  Vector y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  Vector even_a = y0 + all(kA2) * y2, odd_a = all(kA) * (y1 + all(kA2) * y3);
  Vector even_b = y0 + all(kB2) * y2, odd_b = all(kB) * (y1 + all(kB2) * y3);
  m[0] = y0;
  m[to] = even_a + odd_a;
  m[2 * to] = even_a - odd_a;
  m[3 * to] = even_b + odd_b;
  m[4 * to] = even_b - odd_b;
  m[5 * to] = y3;
}

using Step = void (*)(const Vector*, int, Vector*, int);

// Both dimensions of a square of vectors: kFrom x kFrom to kTo x kTo.
template <int kFrom, int kTo, Step step>
CNNJAX_INLINE void both(const Vector* from, Vector* to) {
  Vector half[kTo * kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) step(from + j, kFrom, half + j, kFrom);
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) step(half + i * kFrom, 1, to + i * kTo, 1);
}

int64_t tiles_of(const Layer& l) { return l.count * down(l) * across(l); }

// How many are convolved at a time: so many that their transformed pixels stay in the second-level cache, and more
// where the transformed weights do not stay in the third and come from memory each time.
int64_t most_tiles(const Layer& l) {
  return l.in.channels * l.out.channels * kPoints * sizeof(float) > 16 << 20 ? 72 : 24;
}

// Of a tile's first output.
Place place_of(const Layer& l, int64_t tile) {
  int64_t column = tile % across(l), row = tile / across(l) % down(l);
  return {tile / across(l) / down(l), row * kOut, column * kOut};
}

// kCount x kCount pixels, transformed: `channels` numbers at each of 36 points `apart`.
template <int kCount, Step step>
CNNJAX_VECTORS void transform_pixels(const float* data, const Images& images, Place first, int64_t channels,
                                     const float* zeros, float* to, int64_t apart) {
  const float* pixels[kCount * kCount];
  find_pixels<kCount, kCount>(data, images, first, zeros, pixels);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector from[kCount * kCount], done[kPoints];
#pragma GCC unroll 36
    for (int i = 0; i < kCount * kCount; ++i) from[i] = load(pixels[i] + c);
    both<kCount, kSide, step>(from, done);
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) store(to + i * apart + c, done[i]);
  }
}

// The transformed weights of one input channel and 16 output channels.
CNNJAX_VECTORS void transform_kernel(const Layer& l, const float* kernel, int64_t outputs, float* to, int64_t apart) {
  float packed[kWindow * kWindow][kWide];
  pack_kernel<kWindow * kWindow, kWindow * kWindow>(l, kernel, 0, outputs, packed);
  for (int64_t k = 0; k < kWide; k += kLanes) {
    Vector from[kWindow * kWindow], done[kPoints];
    for (int t = 0; t < kWindow * kWindow; ++t) from[t] = load(packed[t] + k);
    both<kWindow, kSide, kernel_step>(from, done);
    for (int i = 0; i < kPoints; ++i) store(to + i * apart + k, done[i]);
  }
}

// The outputs of one tile from its sums, `channels` numbers at each of 36 points `apart` from each other.
CNNJAX_VECTORS void transform_outputs(const Layer& l, Place first, const float* m, int64_t apart, const Ends& ends,
                                      int64_t channels, float* y) {
  int64_t rows = std::min(kOut, l.out.height - first.row), columns = std::min(kOut, l.out.width - first.column);
  float* to = y + ((first.image * l.out.height + first.row) * l.out.width + first.column) * l.out.all;
  for (int64_t k = 0; k < channels; k += kLanes) {
    Vector from[kPoints], done[kOut * kOut];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = load(m + i * apart + k);
    both<kSide, kOut, output_step>(from, done);
    Vector more = ends.bias ? load(ends.bias + k) : all(0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        float* at = to + (i * l.out.width + j) * l.out.all + k;
        Vector sum = done[i * kOut + j] + more;
        store(at, bounded(ends.adds ? sum + load(at) : sum, ends));
      }
  }
}

struct Method {
  using Number = float;
  static constexpr int64_t kPoints = squares::kPoints, kCoupled = 1;
  static int64_t tiles_of(const Layer& l) { return squares::tiles_of(l); }
  static int64_t most_tiles(const Layer& l) { return squares::most_tiles(l); }
  static Place place_of(const Layer& l, int64_t tile) { return squares::place_of(l, tile); }
  static void transform_inputs(const float* x, const Images& in, Place first, const float* zeros, float* v,
                               int64_t apart) {
    transform_pixels<kSide, input_step>(x, in, first, in.channels, zeros, v, apart);
  }
  static constexpr auto transform_kernel = squares::transform_kernel;
  static constexpr auto transform_outputs = squares::transform_outputs;
};

// The taps of one channel from the sums of all tiles, a vector of filters at a time.
CNNJAX_VECTORS void transform_sums(const float* sums, int64_t apart, int64_t filters, float* dkernel, int64_t tap) {
  for (int64_t k = 0; k < filters; k += kLanes) {
    Vector from[kPoints], done[kWindow * kWindow];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = load(sums + i * apart + k);
    both<kSide, kWindow, kernel_step_transposed>(from, done);
#pragma GCC unroll 9
    for (int i = 0; i < kWindow * kWindow; ++i) store(dkernel + i * tap + k, done[i]);
  }
}

void kernel_gradient(const Layer& l, Turn& turn, const float* x, const float* dy, float* dkernel) {
  Division division(l);
  int64_t depth = division.depth, width = division.width, tiles = tiles_of(l);
  int64_t v_point = odd_lines(kTiles * depth), d_point = odd_lines(kTiles * width);
  int64_t sum_point = odd_lines(depth * width), size = kPoints * (v_point + d_point + sum_point);
  divide(l, division, turn, size, x, dy, dkernel, [&](const Part<float>& part, const float* zeros, float* v) {
    float *d = v + kPoints * v_point, *sums = d + kPoints * d_point;
    std::fill_n(sums, kPoints * sum_point, 0.0f);
    for (int64_t begin = 0; begin < tiles; begin += kTiles) {
      int64_t count = std::min(kTiles, tiles - begin);
      for (int64_t t = 0; t < count; ++t) {
        Place first = place_of(l, begin + t);
        transform_pixels<kOut, output_step_transposed>(part.dy, l.out, first, part.filters, zeros, d + t * width,
                                                       d_point);
        first.row -= l.top, first.column -= l.left;
        transform_pixels<kSide, input_step>(part.x, l.in, first, part.channels, zeros, v + t * depth, v_point);
      }
      for (int64_t point = 0; point < kPoints; ++point)
        correlate(v + point * v_point, depth, part.channels, d + point * d_point, width, part.filters, count,
                  sums + point * sum_point);
    }
    for (int64_t i = 0; i < part.channels; ++i)
      transform_sums(sums + i * width, sum_point, part.filters, part.dkernel + i * l.input, l.tap);
  });
}

}  // namespace squares
}  // namespace
}  // namespace cnnjax
