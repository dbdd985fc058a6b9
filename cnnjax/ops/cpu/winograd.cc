// Convolutions of 3x3 windows and stride 1 in float32 by Winograd's method (Lavin and Gray 2016), for processors with
// AVX2; those of 5x5 windows are in winograd_rows.cc.
//
// A tile of 6x6 inputs gives 4x4 outputs, with 36 products for each channel and filter in place of 144. Pixels and
// weights are transformed, multiplied at each of the 36 points, and summed over channels (over tiles, for the gradient
// of the kernel); the sums are transformed to the result. The points are 0, 3/4, -3/4, 3/2, -3/2 and infinity.
#include "winograd.h"

#include <cpuid.h>

namespace cnnjax {
namespace {

constexpr int kWindow = 3, kSide = 6, kPoints = kSide * kSide;
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr int64_t kTiles = 24;             // tiles of images at a time
constexpr int64_t kSaved = 4000;           // products saved by a weight, at least
constexpr int64_t kMostWeights = 1 << 20;  // of a tap: transformed they take up to 36 times as much memory

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

int64_t tiles_of(const Layer& l) { return l.count * l.down() * l.across(); }

// Of a tile's first output.
Place place_of(const Layer& l, int64_t tile) {
  int64_t column = tile % l.across(), row = tile / l.across() % l.down();
  return {tile / l.across() / l.down(), row * kOut, column * kOut};
}

// kCount x kCount pixels, transformed: `channels` numbers at each of 36 points `apart`.
template <int kCount, Step step>
CNNJAX_AVX2 void transform_pixels(const float* data, const Images& images, Place first, int64_t channels,
                                  const float* zeros, float* to, int64_t apart) {
  const float* pixels[kCount * kCount];
  find_pixels<kCount, kCount>(data, images, first, zeros, pixels);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector from[kCount * kCount], done[kPoints];
#pragma GCC unroll 36
    for (int i = 0; i < kCount * kCount; ++i) from[i] = _mm256_loadu_ps(pixels[i] + c);
    both<kCount, kSide, step>(from, done);
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) _mm256_storeu_ps(to + i * apart + c, done[i]);
  }
}

// The transformed weights of one input channel and 16 output channels.
CNNJAX_AVX2 void transform_kernel(const Layer& l, const float* kernel, int64_t outputs, float* to, int64_t apart) {
  float packed[kWindow * kWindow][kWide];
  pack_kernel<kWindow * kWindow>(l, kernel, kWindow * kWindow - 1, 0, outputs, packed);
  for (int64_t k = 0; k < kWide; k += kLanes) {
    Vector from[kWindow * kWindow], done[kPoints];
    for (int t = 0; t < kWindow * kWindow; ++t) from[t] = _mm256_loadu_ps(packed[t] + k);
    both<kWindow, kSide, kernel_step>(from, done);
    for (int i = 0; i < kPoints; ++i) _mm256_storeu_ps(to + i * apart + k, done[i]);
  }
}

// The outputs of one tile from its sums, `channels` numbers at each of 36 points `apart` from each other.
CNNJAX_AVX2 void transform_outputs(const Layer& l, Place first, const float* m, int64_t apart, const float* bias,
                                   int64_t channels, float* y) {
  int64_t rows = std::min(kOut, l.out.height - first.row), columns = std::min(kOut, l.out.width - first.column);
  float* to = y + ((first.image * l.out.height + first.row) * l.out.width + first.column) * l.out.all;
  for (int64_t k = 0; k < channels; k += kLanes) {
    Vector from[kPoints], done[kOut * kOut];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = _mm256_loadu_ps(m + i * apart + k);
    both<kSide, kOut, output_step>(from, done);
    Vector more = bias ? _mm256_loadu_ps(bias + k) : all(0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        _mm256_storeu_ps(to + (i * l.out.width + j) * l.out.all + k, done[i * kOut + j] + more);
  }
}

// Each thread takes some tiles of all channels and filters.
void convolve(const Layer& l, Turn& turn, const float* x, const float* kernel, const float* bias, float* y) {
  int64_t depth = l.in.channels, rows = kTiles, tiles = tiles_of(l), blocks = (tiles + rows - 1) / rows;
  // The 36 numbers of a tile lie an odd number of cache lines apart: otherwise they would push each other out.
  int64_t u_point = depth * kWide + kWide, block_size = kPoints * u_point, u_size = l.groups * l.wide() * block_size;
  int64_t v_row = depth, v_point = rows * v_row + kWide;
  int64_t m_row = std::min(kGroup, l.wide() * kWide), m_point = rows * m_row + kWide;
  int64_t v_size = kPoints * v_point, m_size = kPoints * m_point;
  int64_t size = u_size + depth + omp_get_max_threads() * (v_size + m_size);
  float* u = reinterpret_cast<float*>(turn.scratch(size * sizeof(float)));
  float* zeros = u + u_size;
  std::fill_n(zeros, depth, 0.0f);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t index = 0; index < l.groups * l.wide() * depth; ++index) {
      int64_t c = index % depth, k = index / depth % l.wide() * kWide, group = index / depth / l.wide();
      const float* from = kernel + c * l.input + (group * l.out.channels + k) * l.output;
      if (l.flipped) from = kernel + (group * depth + c) * l.input + k * l.output;
      float* to = u + index / depth * block_size + c * kWide;
      transform_kernel(l, from, std::min(kWide, l.out.channels - k), to, u_point);
    }
    float* v = zeros + depth + omp_get_thread_num() * (v_size + m_size);
    float* m = v + v_size;
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < l.groups * blocks; ++index) {
      int64_t group = index / blocks, begin = index % blocks * rows, count = std::min(rows, tiles - begin);
      for (int64_t t = 0; t < count; ++t) {
        Place first = place_of(l, begin + t);
        first.row -= l.top, first.column -= l.left;
        transform_pixels<kSide, input_step>(x + group * depth, l.in, first, depth, zeros, v + t * v_row, v_point);
      }
      for (int64_t filter = 0; filter < l.out.channels; filter += kGroup) {
        int64_t filters = std::min(kGroup, l.out.channels - filter);
        for (int64_t point = 0; point < kPoints; ++point) {
          for (int64_t k = 0; k < filters; k += kWide) {
            const float* some = u + (group * l.wide() + (filter + k) / kWide) * block_size + point * u_point;
            for (int64_t t = 0; t < count; t += kTall) {
              kMultiply[std::min(kTall, count - t) - 1](v + point * v_point + t * v_row, v_row, 0, 1, some, depth,
                                                        false, m + point * m_point + t * m_row + k, m_row);
            }
          }
        }
        int64_t first = group * l.out.channels + filter;
        for (int64_t t = 0; t < count; ++t)
          transform_outputs(l, place_of(l, begin + t), m + t * m_row, m_point, bias ? bias + first : nullptr, filters,
                            y + first);
      }
    }
  }
}

// The taps of one channel from the sums of all tiles, 8 filters at a time.
CNNJAX_AVX2 void transform_sums(const float* sums, int64_t apart, int64_t filters, float* dkernel, int64_t tap) {
  for (int64_t k = 0; k < filters; k += kLanes) {
    Vector from[kPoints], done[kWindow * kWindow];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = _mm256_loadu_ps(sums + i * apart + k);
    both<kSide, kWindow, kernel_step_transposed>(from, done);
#pragma GCC unroll 9
    for (int i = 0; i < kWindow * kWindow; ++i) _mm256_storeu_ps(dkernel + i * tap + k, done[i]);
  }
}

void kernel_gradient_of(const Layer& l, Turn& turn, const float* x, const float* dy, float* dkernel) {
  Division division(l);
  int64_t down = division.down, across = division.across, depth = division.depth, width = division.width;
  int64_t rows = kTiles, tiles = tiles_of(l), v_row = depth, v_point = rows * v_row + kWide;
  int64_t d_row = width, d_point = rows * d_row + kWide, sum_point = depth * width + kWide;
  int64_t size = kPoints * (v_point + d_point + sum_point), most = std::max(depth, width);
  float* zeros = reinterpret_cast<float*>(turn.scratch((most + omp_get_max_threads() * size) * sizeof(float)));
  std::fill_n(zeros, most, 0.0f);
#pragma omp parallel for schedule(static, 1)
  for (int64_t index = 0; index < l.groups * down * across; ++index) {
    int64_t group = index / (down * across), c = index / across % down * depth, k = index % across * width;
    int64_t channels = std::min(depth, l.in.channels - c), filters = std::min(width, l.out.channels - k);
    if (channels <= 0 || filters <= 0) continue;
    float* v = zeros + most + omp_get_thread_num() * size;
    float *d = v + kPoints * v_point, *sums = d + kPoints * d_point;
    std::fill_n(sums, kPoints * sum_point, 0.0f);
    const float *from = x + group * l.in.channels + c, *by = dy + group * l.out.channels + k;
    for (int64_t begin = 0; begin < tiles; begin += rows) {
      int64_t count = std::min(rows, tiles - begin);
      for (int64_t t = 0; t < count; ++t) {
        Place first = place_of(l, begin + t);
        transform_pixels<kOut, output_step_transposed>(by, l.out, first, filters, zeros, d + t * d_row, d_point);
        first.row -= l.top, first.column -= l.left;
        transform_pixels<kSide, input_step>(from, l.in, first, channels, zeros, v + t * v_row, v_point);
      }
      for (int64_t point = 0; point < kPoints; ++point) {
        for (int64_t j = 0; j < filters; j += kWide) {
          for (int64_t i = 0; i < channels; i += kTall) {
            float* to = sums + point * sum_point + i * width + j;
            kAccumulate[std::min(kTall, channels - i) - 1](v + point * v_point + i, v_row, d + point * d_point + j,
                                                           d_row, count, to, width);
          }
        }
      }
    }
    for (int64_t i = 0; i < channels; ++i)
      transform_sums(sums + i * width, sum_point, filters, dkernel + (c + i) * l.input + group * l.out.channels + k,
                     l.tap);
  }
}

// Whether nothing multiplies faster here than AVX2: there is no AVX-512, or it is Zen 4's, which executes it in halves.
bool avx2_is_fastest() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  unsigned a, b, c, d;
  bool known = __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d);
  bool zen_3_or_4 = known && (a >> 8 & 15) + (a >> 20 & 255) == 25;
  return zen_3_or_4 || !__builtin_cpu_supports("avx512f");
}

}  // namespace

bool has_winograd(const Problem& p) {
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups, window = p.kernel[0];
  bool fits = (window == 3 || window == 5) && p.kernel[1] == window && p.strides == Dims{1, 1} &&
              p.dilation == Dims{1, 1} && channels % kLanes == 0 && filters % kLanes == 0;
  if (!fits || p.type != dnnl::memory::data_type::f32) return false;
  // Products have to outweigh the transformation of pixels, and those saved by each weight that of the weights.
  const Dims& out = p.mode == kInputGradient ? p.x : p.y;
  int64_t across = (out[2] + kOut - 1) / kOut, down = (out[1] + kOut - 1) / kOut;
  int64_t products = window == 3 ? kPoints * down * across : 40 * out[1] * across;
  bool pays = channels >= 16 && filters >= 16 && out[0] * (window * window * out[1] * out[2] - products) >= kSaved;
  return pays && channels * filters <= kMostWeights && avx2_is_fastest();
}

void winograd(const Problem& p, Turn& turn, const float* first, const float* second, const float* bias, float* result) {
  int64_t window = p.kernel[0], channels = p.kernel[2], filters = p.kernel[3] / p.groups;
  Images x = {p.x[1], p.x[2], channels, p.x[3]}, y = {p.y[1], p.y[2], filters, p.y[3]};
  Layer layer = {p.x[0], p.groups, x, y, p.padding[0], p.padding[2], channels * p.kernel[3], p.kernel[3], 1, false};
  if (p.mode == kInputGradient)
    layer = {p.x[0], p.groups, y, x, window - 1 - p.padding[0], window - 1 - p.padding[2],
             channels * p.kernel[3], 1, p.kernel[3], true};
  if (p.mode == kKernelGradient)
    return (window == 3 ? kernel_gradient_of : kernel_gradient_of_rows)(layer, turn, first, second, result);
  (window == 3 ? convolve : convolve_rows)(layer, turn, first, second, bias, result);
}

}  // namespace cnnjax
