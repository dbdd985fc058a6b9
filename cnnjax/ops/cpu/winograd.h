// What Winograd's method for 3x3 windows (winograd.cc) and for 5x5 ones (winograd_rows.cc) have in common, on vectors
// of AVX2 (Lavin and Gray 2016, section 4.1).
//
// Outputs are A' [(G w) * (B' d)] with the matrices of Toom and Cook for 0, some pairs of points of opposite sign, and
// infinity; the gradients take the transposes. Symmetric points need fewer operations; on their choice, which decides
// what is rounded: Barabasz et al. 2020.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "convolution.h"

#define CNNJAX_AVX2 __attribute__((target("avx2,fma")))
#define CNNJAX_INLINE CNNJAX_AVX2 __attribute__((always_inline)) inline

namespace cnnjax {

// Images of one group: `channels` of the `all` of a pixel.
struct Images {
  int64_t height, width, channels, all;
};

constexpr int64_t kLanes = 8, kWide = 16;  // floats of a vector; filters of a tile of the products
constexpr int64_t kTall = 6;               // rows of such a tile, whose sums fill 12 of 16 registers
constexpr int64_t kGroup = 64;             // filters whose products lie in the second-level cache
constexpr int64_t kOut = 4;                // outputs of a tile along an axis

// A convolution of stride 1, whose input gradient is another one. A weight lies at tap * `tap` + input channel *
// `input` + output channel * `output`.
struct Layer {
  int64_t count, groups;
  Images in, out;
  int64_t top, left;  // zeros before the inputs
  int64_t tap, input, output;
  bool flipped;  // the taps stand in reverse

  int64_t down() const { return (out.height + kOut - 1) / kOut; }
  int64_t across() const { return (out.width + kOut - 1) / kOut; }
  int64_t wide() const { return (out.channels + kWide - 1) / kWide; }
};

// Of the three passes over 5x5 windows.
void convolve_rows(const Layer& l, Turn& turn, const float* x, const float* kernel, const float* bias, float* y);
void kernel_gradient_of_rows(const Layer& l, Turn& turn, const float* x, const float* dy, float* dkernel);

namespace {

using Vector = __m256;
CNNJAX_INLINE Vector all(float value) { return _mm256_set1_ps(value); }

struct Place {
  int64_t image, row, column;
};

// Where the pixels of a rectangle are; zeros outside the image.
template <int kRows, int kColumns>
inline void find_pixels(const float* data, const Images& images, Place first, const float* zeros,
                        const float** pixels) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      int64_t row = first.row + i, column = first.column + j;
      bool inside = row >= 0 && row < images.height && column >= 0 && column < images.width;
      int64_t pixel = (first.image * images.height + row) * images.width + column;
      pixels[i * kColumns + j] = inside ? data + pixel * images.all : zeros;
    }
  }
}

// The kTaps weights of one input channel and 16 output channels from a first tap, zeros past the last filter.
template <int kTaps>
inline void pack_kernel(const Layer& l, const float* kernel, int64_t last, int64_t first, int64_t outputs,
                        float (*packed)[kWide]) {
  for (int t = 0; t < kTaps; ++t) {
    const float* from = kernel + (l.flipped ? last - first - t : first + t) * l.tap;
    for (int64_t k = 0; k < kWide; ++k) packed[t][k] = k < outputs ? from[k * l.output] : 0;
  }
}

// `kHeight` tiles at one point: the sum over `taps` of v [kHeight][depth] times u [depth][16], added to m or put there.
template <int kHeight>
CNNJAX_AVX2 void multiply(const float* v, int64_t v_row, int64_t v_tap, int64_t taps, const float* u, int64_t depth,
                          bool add, float* m, int64_t m_row) {
  Vector low[kHeight], high[kHeight];
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) {
    low[i] = add ? _mm256_loadu_ps(m + i * m_row) : all(0);
    high[i] = add ? _mm256_loadu_ps(m + i * m_row + kLanes) : all(0);
  }
  for (int64_t tap = 0; tap < taps; ++tap, v += v_tap) {
    for (int64_t c = 0; c < depth; ++c, u += kWide) {
      Vector first = _mm256_loadu_ps(u), second = _mm256_loadu_ps(u + kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < kHeight; ++i) {
        Vector value = _mm256_broadcast_ss(v + i * v_row + c);
        low[i] = _mm256_fmadd_ps(value, first, low[i]);
        high[i] = _mm256_fmadd_ps(value, second, high[i]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) {
    _mm256_storeu_ps(m + i * m_row, low[i]);
    _mm256_storeu_ps(m + i * m_row + kLanes, high[i]);
  }
}

using Multiply = decltype(multiply<1>)*;
constexpr Multiply kMultiply[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>};

// Adds `count` tiles of kHeight channels and 16 filters at one point: v [count][kHeight] times d [count][16].
template <int kHeight>
CNNJAX_AVX2 void accumulate(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t count, float* sum,
                            int64_t sum_row) {
  Vector low[kHeight], high[kHeight];
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) low[i] = high[i] = _mm256_setzero_ps();
  for (int64_t t = 0; t < count; ++t, v += v_row, d += d_row) {
    Vector first = _mm256_loadu_ps(d), second = _mm256_loadu_ps(d + kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kHeight; ++i) {
      Vector value = _mm256_broadcast_ss(v + i);
      low[i] = _mm256_fmadd_ps(value, first, low[i]);
      high[i] = _mm256_fmadd_ps(value, second, high[i]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) {  // of some tiles apart from the sum so far, which is larger: less is rounded
    float* to = sum + i * sum_row;
    _mm256_storeu_ps(to, _mm256_loadu_ps(to) + low[i]);
    _mm256_storeu_ps(to + kLanes, _mm256_loadu_ps(to + kLanes) + high[i]);
  }
}

using Accumulate = decltype(accumulate<1>)*;
constexpr Accumulate kAccumulate[] = {accumulate<1>, accumulate<2>, accumulate<3>,
                                      accumulate<4>, accumulate<5>, accumulate<6>};

// The channels and filters of which each of `down` x `across` threads sums all tiles, so that no sum is made across
// threads.
struct Division {
  explicit Division(const Layer& l)
      : across(std::min<int64_t>(omp_get_max_threads(), l.wide())),
        down(std::max<int64_t>(1, std::min(omp_get_max_threads() / across, l.in.channels / kLanes))),
        depth((l.in.channels / kLanes + down - 1) / down * kLanes),
        width((l.wide() + across - 1) / across * kWide) {}
  int64_t across, down, depth, width;
};

}  // namespace
}  // namespace cnnjax
