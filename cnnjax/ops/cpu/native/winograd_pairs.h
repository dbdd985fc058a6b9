// Convolutions of 3x3 windows and stride 1 in bfloat16 by Winograd's method (Lavin and Gray 2016), on processors that
// multiply pairs of bfloat16 and add both products in float32.
//
// A tile of 4x4 inputs gives 2x2 outputs, with 16 products for each channel and filter in place of 36. The transformed
// pixels and weights are rounded to bfloat16, once, and nothing else is until the result: the points 0, 1, -1 and
// infinity are those that magnify this least. What is called a float here and in winograd_tiles.h holds a pair: of two
// channels, or of two tiles for the gradient of the kernel.
#pragma once

#include "winograd_convolution.h"

namespace cnnjax {
namespace {
namespace pairs {

using Half = uint16_t;  // the bits of a bfloat16

constexpr int kWindow = 3, kSide = 4, kPoints = kSide * kSide;
constexpr int64_t kStep = 2;                         // outputs of a tile along an axis
constexpr int64_t kCached = 700 << 10;               // bytes of transformed pixels and their products at a time,
constexpr int64_t kManyWeights = 4 << 20;            // but three times that beside so many bytes of weights
constexpr int64_t kManyTiles = 192, kFewTiles = 96;  // that are added to the kernel's gradient at a time

CNNJAX_INLINE Vector load_halves(const Half* from) {
  __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

CNNJAX_INLINE __m256i round_halves(Vector wide) { return (__m256i)_mm512_cvtneps_pbh(wide); }

CNNJAX_INLINE void store_halves(Half* to, Vector wide) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), round_halves(wide));
}

CNNJAX_INLINE Vector pair_of(Vector first, Vector second) {
  __m512i low = _mm512_cvtepu16_epi32(round_halves(first)), high = _mm512_cvtepu16_epi32(round_halves(second));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// As in winograd_squares.h: in one dimension, from every `stride`-th vector to every `to`-th.
CNNJAX_INLINE void input_step(const Vector* d, int stride, Vector* v, int to) {
  Vector d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
  v[0] = d0 - d2;
  v[to] = d1 + d2;
  v[2 * to] = d2 - d1;
  v[3 * to] = d1 - d3;
}

CNNJAX_INLINE void kernel_step(const Vector* w, int stride, Vector* u, int to) {
  Vector even = all(0.5f) * (w[0] + w[2 * stride]), odd = all(0.5f) * w[stride];
  u[0] = w[0];
  u[to] = even + odd;
  u[2 * to] = even - odd;
  u[3 * to] = w[2 * stride];
}

CNNJAX_INLINE void kernel_step_transposed(const Vector* u, int stride, Vector* w, int to) {
  Vector even = all(0.5f) * (u[stride] + u[2 * stride]);
  w[0] = u[0] + even;
  w[to] = all(0.5f) * (u[stride] - u[2 * stride]);
  w[2 * to] = even + u[3 * stride];
}

CNNJAX_INLINE void output_step(const Vector* m, int stride, Vector* y, int to) {
  y[0] = m[0] + m[stride] + m[2 * stride];
  y[to] = m[stride] - m[2 * stride] - m[3 * stride];
}

CNNJAX_INLINE void output_step_transposed(const Vector* y, int stride, Vector* m, int to) {
  Vector y0 = y[0], y1 = y[stride];
  m[0] = y0;
  m[to] = y0 + y1;
  m[2 * to] = y0 - y1;
  m[3 * to] = all(0) - y1;
}

using Step = void (*)(const Vector*, int, Vector*, int);

template <int kFrom, int kTo, Step step>
CNNJAX_INLINE void both(const Vector* from, Vector* to) {
  Vector half[kTo * kFrom];
#pragma GCC unroll 4
  for (int j = 0; j < kFrom; ++j) step(from + j, kFrom, half + j, kFrom);
#pragma GCC unroll 4
  for (int i = 0; i < kTo; ++i) step(half + i * kFrom, 1, to + i * kTo, 1);
}

int64_t rows_of(const Layer& l) { return parts_of(l.out.height, kStep); }
int64_t columns_of(const Layer& l) { return parts_of(l.out.width, kStep); }
int64_t tiles_of(const Layer& l) { return l.count * rows_of(l) * columns_of(l); }

Place place_of(const Layer& l, int64_t tile) {
  int64_t column = tile % columns_of(l), row = tile / columns_of(l) % rows_of(l);
  return {tile / columns_of(l) / rows_of(l), row * kStep, column * kStep};
}

template <int kCount, Step step>
CNNJAX_INLINE void transform(const Half* const* pixels, int64_t c, Vector* done) {
  Vector from[kCount * kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kCount * kCount; ++i) from[i] = load_halves(pixels[i] + c);
  both<kCount, kSide, step>(from, done);
}

// 4x4 pixels, transformed: pairs of channels at each of 16 points `apart`.
CNNJAX_VECTORS void transform_pixels(const Half* data, const Images& images, Place first, int64_t channels,
                                     const Half* zeros, float* to, int64_t apart) {
  const Half* pixels[kPoints];
  find_pixels<kSide, kSide>(data, images, first, zeros, pixels);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector done[kPoints];
    transform<kSide, input_step>(pixels, c, done);
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) store_halves(reinterpret_cast<Half*>(to + i * apart) + c, done[i]);
  }
}

// kCount x kCount pixels of each of two tiles, transformed: pairs of tiles. Without a second place its half is zero.
template <int kCount, Step step>
CNNJAX_VECTORS void transform_tiles(const Half* data, const Images& images, Place first, Place second, bool two,
                                    int64_t channels, const Half* zeros, float* to, int64_t apart) {
  const Half *one[kCount * kCount], *other[kCount * kCount];
  find_pixels<kCount, kCount>(data, images, first, zeros, one);
  find_pixels<kCount, kCount>(data, images, second, zeros, other);
  if (!two) std::fill_n(other, kCount * kCount, zeros);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector low[kPoints], high[kPoints];
    transform<kCount, step>(one, c, low);
    transform<kCount, step>(other, c, high);
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) store(to + i * apart + c, pair_of(low[i], high[i]));
  }
}

// The transformed weights of two input channels and 16 output channels.
CNNJAX_VECTORS void transform_kernel(const Layer& l, const Half* kernel, int64_t outputs, float* to, int64_t apart) {
  Vector done[2][kPoints];
  for (int channel = 0; channel < 2; ++channel) {
    float packed[kWindow * kWindow][kWide];
    pack_kernel<kWindow * kWindow, kWindow * kWindow>(l, kernel + channel * l.input, 0, outputs, packed);
    Vector from[kWindow * kWindow];
    for (int t = 0; t < kWindow * kWindow; ++t) from[t] = load(packed[t]);
    both<kWindow, kSide, kernel_step>(from, done[channel]);
  }
  for (int i = 0; i < kPoints; ++i) store(to + i * apart, pair_of(done[0][i], done[1][i]));
}

CNNJAX_VECTORS void transform_outputs(const Layer& l, Place first, const float* m, int64_t apart, const Ends& ends,
                                      int64_t channels, Half* y) {
  int64_t rows = std::min(kStep, l.out.height - first.row), columns = std::min(kStep, l.out.width - first.column);
  Half* to = y + ((first.image * l.out.height + first.row) * l.out.width + first.column) * l.out.all;
  for (int64_t k = 0; k < channels; k += kLanes) {
    Vector from[kPoints], done[kStep * kStep];
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) from[i] = load(m + i * apart + k);
    both<kSide, kStep, output_step>(from, done);
    Vector more = ends.bias ? load(ends.bias + k) : all(0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        Half* at = to + (i * l.out.width + j) * l.out.all + k;
        Vector sum = done[i * kStep + j] + more;
        store_halves(at, bounded(ends.adds ? sum + load_halves(at) : sum, ends));
      }
  }
}

struct Method {
  using Number = Half;
  static constexpr int64_t kPoints = pairs::kPoints, kCoupled = 2;
  static int64_t tiles_of(const Layer& l) { return pairs::tiles_of(l); }
  static int64_t most_tiles(const Layer& l) {
    int64_t couples = l.in.channels / 2, row = std::min(kGroup, panels(l) * kWide);
    int64_t weights = 4 * panels(l) * kPoints * couples * kWide;
    int64_t cached = weights > kManyWeights ? 3 * kCached : kCached;
    return std::max<int64_t>(2, cached / (kPoints * 4 * (couples + row)) / kTall) * kTall;
  }
  static Place place_of(const Layer& l, int64_t tile) { return pairs::place_of(l, tile); }
  static void transform_inputs(const Half* x, const Images& in, Place first, const float* zeros, float* v,
                               int64_t apart) {
    transform_pixels(x, in, first, in.channels, reinterpret_cast<const Half*>(zeros), v, apart);
  }
  static constexpr auto transform_kernel = pairs::transform_kernel;
  static constexpr auto transform_outputs = pairs::transform_outputs;
};

CNNJAX_VECTORS void transform_sums(const float* sums, int64_t apart, int64_t filters, Half* dkernel, int64_t tap) {
  for (int64_t k = 0; k < filters; k += kLanes) {
    Vector from[kPoints], done[kWindow * kWindow];
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) from[i] = load(sums + i * apart + k);
    both<kSide, kWindow, kernel_step_transposed>(from, done);
#pragma GCC unroll 9
    for (int i = 0; i < kWindow * kWindow; ++i) store_halves(dkernel + i * tap + k, done[i]);
  }
}

void kernel_gradient(const Layer& l, Turn& turn, const Half* x, const Half* dy, Half* dkernel) {
  Division division(l);
  int64_t depth = division.depth, width = division.width, tiles = tiles_of(l);
  int64_t most = depth + width > 2 * kFewTiles ? kManyTiles : kFewTiles;
  int64_t v_point = odd_lines(most / 2 * depth), d_point = odd_lines(most / 2 * width);
  int64_t sum_point = odd_lines(depth * width), size = kPoints * (v_point + d_point + sum_point);
  divide(l, division, turn, size, x, dy, dkernel, [&](const Part<Half>& part, const float* zero, float* v) {
    const Half* zeros = reinterpret_cast<const Half*>(zero);
    float *d = v + kPoints * v_point, *sums = d + kPoints * d_point;
    std::fill_n(sums, kPoints * sum_point, 0.0f);
    for (int64_t begin = 0; begin < tiles; begin += most) {
      int64_t count = std::min(most, tiles - begin);
      for (int64_t t = 0; t < count; t += 2) {
        bool two = t + 1 < count;
        Place first = place_of(l, begin + t), second = place_of(l, begin + t + two);
        transform_tiles<kStep, output_step_transposed>(part.dy, l.out, first, second, two, part.filters, zeros,
                                                       d + t / 2 * width, d_point);
        first.row -= l.top, first.column -= l.left, second.row -= l.top, second.column -= l.left;
        transform_tiles<kSide, input_step>(part.x, l.in, first, second, two, part.channels, zeros, v + t / 2 * depth,
                                           v_point);
      }
      for (int64_t point = 0; point < kPoints; ++point)
        correlate(v + point * v_point, depth, part.channels, d + point * d_point, width, part.filters,
                  parts_of(count, 2), sums + point * sum_point);
    }
    for (int64_t i = 0; i < part.channels; ++i)
      transform_sums(sums + i * width, sum_point, part.filters, part.dkernel + i * l.input, l.tap);
  });
}

}  // namespace pairs
}  // namespace
}  // namespace cnnjax
