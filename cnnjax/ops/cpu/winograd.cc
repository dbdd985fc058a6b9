// Convolutions of 3x3 and 5x5 windows and stride 1 in float32 by Winograd's method (Lavin and Gray 2016), for
// processors with AVX2.
//
// A tile of 6x6 inputs gives 4x4 outputs of a 3x3 window or 2x2 of a 5x5 one, with 36 products for each channel and
// filter in place of 144 or 100. Pixels and weights are transformed, multiplied at each of the 36 points, and summed
// over channels (over tiles, for the gradient of the kernel); the sums are transformed to the result.
#include <cpuid.h>

#include <algorithm>

#include "convolution.h"
#include "winograd.h"

namespace cnnjax {
namespace {

constexpr int64_t kLanes = 8, kWide = 16;  // floats of a vector; filters of a tile of the products
constexpr int64_t kTall = 6;               // rows of such a tile, whose sums fill 12 of 16 registers
constexpr int64_t kTiles = 24;             // tiles of images at a time
constexpr int64_t kGroup = 64;             // filters whose products lie in the second-level cache
constexpr int64_t kSaved = 4000;           // products saved by a weight, at least
constexpr int64_t kMostWeights = 1 << 20;  // of a tap: transformed they take 36 times as much memory

// Images of one group: `channels` of the `all` of a pixel.
struct Images {
  int64_t height, width, channels, all;
};

// A convolution of stride 1, whose input gradient is another one. A weight lies at tap * `tap` + input channel *
// `input` + output channel * `output`.
struct Layer {
  int64_t count, groups, window;
  Images in, out;
  int64_t top, left;  // zeros before the inputs
  int64_t tap, input, output;
  bool flipped;  // the taps stand in reverse

  int64_t size() const { return kSide - window + 1; }  // of a tile's outputs
  int64_t down() const { return (out.height + size() - 1) / size(); }
  int64_t across() const { return (out.width + size() - 1) / size(); }
  int64_t tiles() const { return count * down() * across(); }
  int64_t wide() const { return (out.channels + kWide - 1) / kWide; }
};

struct Place {
  int64_t image, row, column;
};

// Of a tile's first output.
Place place_of(const Layer& l, int64_t tile) {
  int64_t column = tile % l.across(), row = tile / l.across() % l.down();
  return {tile / l.across() / l.down(), row * l.size(), column * l.size()};
}

// kCount x kCount pixels, zeros outside the image, transformed: `channels` numbers at each of 36 points `apart`.
template <int kCount, Step step>
CNNJAX_AVX2 void transform_pixels(const float* data, const Images& images, Place first, int64_t channels,
                                  const float* zeros, float* to, int64_t apart) {
  const float* pixels[kCount * kCount];
  for (int i = 0; i < kCount; ++i) {
    for (int j = 0; j < kCount; ++j) {
      int64_t row = first.row + i, column = first.column + j;
      bool inside = row >= 0 && row < images.height && column >= 0 && column < images.width;
      int64_t pixel = (first.image * images.height + row) * images.width + column;
      pixels[i * kCount + j] = inside ? data + pixel * images.all : zeros;
    }
  }
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector from[kCount * kCount], done[kPoints];
#pragma GCC unroll 36
    for (int i = 0; i < kCount * kCount; ++i) from[i] = _mm256_loadu_ps(pixels[i] + c);
    both<kCount, kSide, step>(from, done);
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) _mm256_storeu_ps(to + i * apart + c, done[i]);
  }
}

// The transformed weights of one input channel and 16 output channels, zeros past the last.
template <int kWindow>
CNNJAX_AVX2 void transform_kernel(const Layer& l, const float* kernel, int64_t outputs, float* to, int64_t apart) {
  constexpr int kTaps = kWindow * kWindow;
  float packed[kTaps][kWide] = {};
  for (int t = 0; t < kTaps; ++t) {
    const float* from = kernel + (l.flipped ? kTaps - 1 - t : t) * l.tap;
    for (int64_t k = 0; k < outputs; ++k) packed[t][k] = from[k * l.output];
  }
  for (int64_t k = 0; k < kWide; k += kLanes) {
    Vector from[kTaps], done[kPoints];
    for (int t = 0; t < kTaps; ++t) from[t] = _mm256_loadu_ps(packed[t] + k);
    both<kWindow, kSide, kernel_step<kWindow>>(from, done);
    for (int i = 0; i < kPoints; ++i) _mm256_storeu_ps(to + i * apart + k, done[i]);
  }
}

// `kHeight` tiles at one point: v [kHeight][depth] times u [depth][16].
template <int kHeight>
CNNJAX_AVX2 void multiply(const float* v, int64_t v_row, const float* u, int64_t depth, float* m, int64_t m_row) {
  Vector low[kHeight], high[kHeight];
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) low[i] = high[i] = _mm256_setzero_ps();
  for (int64_t c = 0; c < depth; ++c, u += kWide) {
    Vector first = _mm256_loadu_ps(u), second = _mm256_loadu_ps(u + kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kHeight; ++i) {
      Vector value = _mm256_broadcast_ss(v + i * v_row + c);
      low[i] = _mm256_fmadd_ps(value, first, low[i]);
      high[i] = _mm256_fmadd_ps(value, second, high[i]);
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

// The outputs of one tile from its sums, `channels` numbers at each of 36 points `apart` from each other.
template <int kWindow>
CNNJAX_AVX2 void transform_outputs(const Layer& l, Place first, const float* m, int64_t apart, const float* bias,
                                   int64_t channels, float* y) {
  constexpr int kOut = kSide - kWindow + 1;
  int64_t rows = std::min<int64_t>(kOut, l.out.height - first.row);
  int64_t columns = std::min<int64_t>(kOut, l.out.width - first.column);
  float* to = y + ((first.image * l.out.height + first.row) * l.out.width + first.column) * l.out.all;
  for (int64_t k = 0; k < channels; k += kLanes) {
    Vector from[kPoints], done[kOut * kOut];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = _mm256_loadu_ps(m + i * apart + k);
    both<kSide, kOut, output_step<kWindow>>(from, done);
    Vector more = bias ? _mm256_loadu_ps(bias + k) : _mm256_setzero_ps();
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        _mm256_storeu_ps(to + (i * l.out.width + j) * l.out.all + k, done[i * kOut + j] + more);
  }
}

// Each thread takes some tiles of all channels and filters.
template <int kWindow>
void convolve(const Layer& l, Turn& turn, const float* x, const float* kernel, const float* bias, float* y) {
  int64_t depth = l.in.channels, rows = kTiles, blocks = (l.tiles() + rows - 1) / rows;
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
      transform_kernel<kWindow>(l, from, std::min(kWide, l.out.channels - k), to, u_point);
    }
    float* v = zeros + depth + omp_get_thread_num() * (v_size + m_size);
    float* m = v + v_size;
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < l.groups * blocks; ++index) {
      int64_t group = index / blocks, begin = index % blocks * rows, count = std::min(rows, l.tiles() - begin);
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
              kMultiply[std::min(kTall, count - t) - 1](v + point * v_point + t * v_row, v_row, some, depth,
                                                        m + point * m_point + t * m_row + k, m_row);
            }
          }
        }
        int64_t first = group * l.out.channels + filter;
        for (int64_t t = 0; t < count; ++t)
          transform_outputs<kWindow>(l, place_of(l, begin + t), m + t * m_row, m_point,
                                     bias ? bias + first : nullptr, filters, y + first);
      }
    }
  }
}

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

// The taps of one channel from the sums of all tiles, 8 filters at a time.
template <int kWindow>
CNNJAX_AVX2 void transform_sums(const float* sums, int64_t apart, int64_t filters, float* dkernel, int64_t tap) {
  for (int64_t k = 0; k < filters; k += kLanes) {
    Vector from[kPoints], done[kWindow * kWindow];
#pragma GCC unroll 36
    for (int i = 0; i < kPoints; ++i) from[i] = _mm256_loadu_ps(sums + i * apart + k);
    both<kSide, kWindow, kernel_step_transposed<kWindow>>(from, done);
#pragma GCC unroll 25
    for (int i = 0; i < kWindow * kWindow; ++i) _mm256_storeu_ps(dkernel + i * tap + k, done[i]);
  }
}

// Each thread sums some channels and filters over all tiles, so that no sum is made across threads.
template <int kWindow>
void kernel_gradient_of(const Layer& l, Turn& turn, const float* x, const float* dy, float* dkernel) {
  constexpr int kOut = kSide - kWindow + 1;
  int64_t threads = omp_get_max_threads(), across = std::min(threads, l.wide());
  int64_t down = std::max<int64_t>(1, std::min(threads / across, l.in.channels / kLanes));
  int64_t depth = (l.in.channels / kLanes + down - 1) / down * kLanes, width = (l.wide() + across - 1) / across * kWide;
  int64_t rows = kTiles, v_row = depth, v_point = rows * v_row + kWide;
  int64_t d_row = width, d_point = rows * d_row + kWide, sum_point = depth * width + kWide;
  int64_t size = kPoints * (v_point + d_point + sum_point), most = std::max(depth, width);
  float* zeros = reinterpret_cast<float*>(turn.scratch((most + threads * size) * sizeof(float)));
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
    for (int64_t begin = 0; begin < l.tiles(); begin += rows) {
      int64_t count = std::min(rows, l.tiles() - begin);
      for (int64_t t = 0; t < count; ++t) {
        Place first = place_of(l, begin + t);
        transform_pixels<kOut, output_step_transposed<kWindow>>(by, l.out, first, filters, zeros, d + t * d_row,
                                                                d_point);
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
      transform_sums<kWindow>(sums + i * width, sum_point, filters,
                              dkernel + (c + i) * l.input + group * l.out.channels + k, l.tap);
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
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups, window = p.kernel[0], size = kSide - window + 1;
  bool fits = (window == 3 || window == 5) && p.kernel[1] == window && p.strides == Dims{1, 1} &&
              p.dilation == Dims{1, 1} && channels % kLanes == 0 && filters % kLanes == 0;
  if (!fits || p.type != dnnl::memory::data_type::f32) return false;
  // Products have to outweigh the transformation of pixels, and those saved by each weight that of the weights.
  const Dims& out = p.mode == kInputGradient ? p.x : p.y;
  int64_t tiles = out[0] * ((out[1] + size - 1) / size) * ((out[2] + size - 1) / size);
  bool pays = channels >= 16 && filters >= 16 && channels * filters >= (window == 3 ? 256 : 1024) &&
              window * window * out[0] * out[1] * out[2] - kPoints * tiles >= kSaved;
  return pays && channels * filters <= kMostWeights && avx2_is_fastest();
}

void winograd(const Problem& p, Turn& turn, const float* first, const float* second, const float* bias, float* result) {
  int64_t window = p.kernel[0], channels = p.kernel[2], filters = p.kernel[3] / p.groups;
  Images x = {p.x[1], p.x[2], channels, p.x[3]}, y = {p.y[1], p.y[2], filters, p.y[3]};
  Layer layer = {p.x[0], p.groups, window, x, y, p.padding[0], p.padding[2], channels * p.kernel[3], p.kernel[3], 1,
                 false};
  if (p.mode == kInputGradient)
    layer = {p.x[0], p.groups, window, y, x, window - 1 - p.padding[0], window - 1 - p.padding[2],
             channels * p.kernel[3], 1, p.kernel[3], true};
  if (p.mode == kKernelGradient)
    return (window == 3 ? kernel_gradient_of<3> : kernel_gradient_of<5>)(layer, turn, first, second, result);
  (window == 3 ? convolve<3> : convolve<5>)(layer, turn, first, second, bias, result);
}

}  // namespace cnnjax
