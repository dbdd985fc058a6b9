// The gradient of a convolution's kernel in float32 for processors with AVX2 and no AVX-512, where oneDNN's takes
// longer than its other two passes.
//
// It is a sum over pixels of products of a channel of x and a filter of dy. A tile of up to 6 channels and 16 filters
// is summed in registers over some hundred pixels at a time, packed so that they stay in the first-level cache while
// all taps of the window go over them. Each thread owns some channels and some filters: nothing is summed across
// threads, and the result does not depend on their number.
#include <immintrin.h>

#include <algorithm>

#include "convolution.h"

#define CNNJAX_AVX2 __attribute__((target("avx2,fma")))

namespace cnnjax {
namespace {

constexpr int64_t kTall = 6, kWide = 16;  // channels and filters of a tile, whose sums fill 12 of 16 registers
constexpr int64_t kPixels = 400;          // of y at a time
constexpr int64_t kBlock = 8;             // pixels that are packed while they are in the first-level cache

int64_t tiles_of(int64_t size, int64_t most) { return (size + most - 1) / most; }

struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// One of `parts` nearly equal parts.
Span part_of(int64_t size, int64_t parts, int64_t index) { return {size * index / parts, size * (index + 1) / parts}; }

// The outputs along an axis whose input under a tap lies in [0, size): those with 0 <= output * stride + shift < size.
Span outputs_of(int64_t outputs, int64_t stride, int64_t shift, int64_t size) {
  int64_t begin = shift < 0 ? (-shift + stride - 1) / stride : 0;
  int64_t end = size > shift ? (size - shift - 1) / stride + 1 : 0;
  return {std::min(begin, outputs), std::max(std::min(end, outputs), std::min(begin, outputs))};
}

// The pixels that a tap sees, and how far apart they are in the packed x and dy, in numbers.
struct Walk {
  int64_t images, rows, columns, x_image, x_row, x_column, y_image, y_row;
};

template <int kHeight>
CNNJAX_AVX2 void sum_tile(const Walk& w, const float* x, const float* dy, float* to, int64_t stride, int64_t filters) {
  __m256 low[kHeight], high[kHeight];  // in registers where every loop over them is unrolled
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) low[i] = high[i] = _mm256_setzero_ps();
  for (int64_t image = 0; image < w.images; ++image) {
    for (int64_t row = 0; row < w.rows; ++row) {
      const float* from = x + image * w.x_image + row * w.x_row;
      const float* by = dy + image * w.y_image + row * w.y_row;
      for (int64_t column = 0; column < w.columns; ++column, from += w.x_column, by += kWide) {
        __m256 first = _mm256_loadu_ps(by), second = _mm256_loadu_ps(by + 8);
#pragma GCC unroll 6
        for (int i = 0; i < kHeight; ++i) {
          __m256 value = _mm256_broadcast_ss(from + i);
          low[i] = _mm256_fmadd_ps(value, first, low[i]);
          high[i] = _mm256_fmadd_ps(value, second, high[i]);
        }
      }
    }
  }
  float sums[kHeight][kWide];
#pragma GCC unroll 6
  for (int i = 0; i < kHeight; ++i) {
    _mm256_storeu_ps(sums[i], low[i]);
    _mm256_storeu_ps(sums[i] + 8, high[i]);
  }
  for (int i = 0; i < kHeight; ++i)
    for (int64_t k = 0; k < filters; ++k) to[i * stride + k] += sums[i][k];
}

template <int kHeight>
void pack_pixels(const float* x, int64_t step, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * kHeight, x + i * step, kHeight * sizeof(float));
}

void pack_filters(const float* dy, int64_t step, int64_t count, int64_t filters, float* to) {
  for (int64_t i = 0; i < count; ++i, dy += step, to += kWide) {
    if (filters == kWide) {
      std::memcpy(to, dy, kWide * sizeof(float));
    } else {
      for (int64_t k = 0; k < kWide; ++k) to[k] = k < filters ? dy[k] : 0;
    }
  }
}

using Sum = decltype(sum_tile<1>)*;
using Pack = decltype(pack_pixels<1>)*;
constexpr Sum kSums[] = {sum_tile<1>, sum_tile<2>, sum_tile<3>, sum_tile<4>, sum_tile<5>, sum_tile<6>};
constexpr Pack kPacks[] = {pack_pixels<1>, pack_pixels<2>, pack_pixels<3>,
                           pack_pixels<4>, pack_pixels<5>, pack_pixels<6>};

// What one thread computes: some channels and filters of one group, counted from the group's first.
struct Part {
  const Problem& p;
  int64_t group;
  Span channels, filters;
  int64_t images, rows;  // of y at a time
  float *packed_x, *packed_dy;

  int64_t tall() const { return tiles_of(channels.size(), kTall); }
  int64_t wide() const { return tiles_of(filters.size(), kWide); }

  // The channels of a tile, counted from the part's first.
  Span channels_of(int64_t tile) const { return part_of(channels.size(), tall(), tile); }

  // The filters of a tile, counted from the first of all.
  Span filters_of(int64_t tile) const {
    int64_t first = group * (p.kernel[3] / p.groups) + filters.begin;
    return {first + tile * kWide, first + std::min((tile + 1) * kWide, filters.size())};
  }

  void pack_x(const float* x, Span images, Span rows) const {
    int64_t all = p.x[3], count = rows.size() * p.x[2], pixels = images.size() * count;
    int64_t first = group * p.kernel[2] + channels.begin;
    for (int64_t image = 0; image < images.size(); ++image) {
      const float* from = x + ((images.begin + image) * p.x[1] + rows.begin) * p.x[2] * all + first;
      for (int64_t i = 0; i < count; i += kBlock) {
        for (int64_t t = 0; t < tall(); ++t) {
          Span span = channels_of(t);
          float* to = packed_x + span.begin * pixels + (image * count + i) * span.size();
          kPacks[span.size() - 1](from + i * all + span.begin, all, std::min(kBlock, count - i), to);
        }
      }
    }
  }

  void pack_dy(const float* dy, Span images, Span rows) const {
    int64_t all = p.y[3], count = rows.size() * p.y[2], pixels = images.size() * count;
    for (int64_t image = 0; image < images.size(); ++image) {
      const float* from = dy + ((images.begin + image) * p.y[1] + rows.begin) * p.y[2] * all;
      for (int64_t i = 0; i < count; i += kBlock) {
        for (int64_t u = 0; u < wide(); ++u) {
          Span span = filters_of(u);
          float* to = packed_dy + (u * pixels + image * count + i) * kWide;
          pack_filters(from + i * all + span.begin, all, std::min(kBlock, count - i), span.size(), to);
        }
      }
    }
  }

  // Adds what some rows of y and the rows of x under them give to all taps of one tile.
  void add_tile(int64_t t, int64_t u, Span images, Span rows, Span x_rows, float* dkernel) const {
    Span some = channels_of(t), by = filters_of(u);
    int64_t width = p.x[2], row = p.y[2], height = some.size();
    const float* tile_x = packed_x + some.begin * images.size() * x_rows.size() * width;
    const float* tile_dy = packed_dy + u * kWide * images.size() * rows.size() * row;
    for (int64_t i = 0; i < p.kernel[0]; ++i) {
      int64_t below = i * p.dilation[0] - p.padding[0];
      Span down = outputs_of(p.y[1], p.strides[0], below, p.x[1]);
      down = {std::max(down.begin, rows.begin), std::min(down.end, rows.end)};
      for (int64_t j = 0; j < p.kernel[1]; ++j) {
        int64_t aside = j * p.dilation[1] - p.padding[2];
        Span across = outputs_of(row, p.strides[1], aside, width);
        if (down.size() <= 0 || across.size() == 0) continue;
        Walk walk{images.size(), down.size(), across.size(), x_rows.size() * width * height,
                  p.strides[0] * width * height, p.strides[1] * height, rows.size() * row * kWide, row * kWide};
        int64_t x_row = down.begin * p.strides[0] + below - x_rows.begin;
        int64_t x_column = across.begin * p.strides[1] + aside;
        const float* x = tile_x + (x_row * width + x_column) * height;
        const float* dy = tile_dy + ((down.begin - rows.begin) * row + across.begin) * kWide;
        kSums[height - 1](walk, x, dy, dkernel + at(i * p.kernel[1] + j, some.begin) + by.begin, p.kernel[3], by.size());
      }
    }
  }

  // Where the weights of a tap and of a channel of this part begin in dkernel.
  int64_t at(int64_t tap, int64_t channel) const {
    return (tap * p.kernel[2] + channels.begin + channel) * p.kernel[3];
  }

  void run(const float* x, const float* dy, float* dkernel) const {
    int64_t first = filters_of(0).begin;
    for (int64_t tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap)
      for (int64_t c = 0; c < channels.size(); ++c) std::fill_n(dkernel + at(tap, c) + first, filters.size(), 0.0f);
    for (int64_t image = 0; image < p.x[0]; image += images) {
      Span some = {image, std::min(image + images, p.x[0])};
      for (int64_t row = 0; row < p.y[1]; row += rows) {
        Span down = {row, std::min(row + rows, p.y[1])};
        int64_t top = row * p.strides[0] - p.padding[0];
        int64_t end = (down.end - 1) * p.strides[0] - p.padding[0] + (p.kernel[0] - 1) * p.dilation[0] + 1;
        Span x_rows = {std::clamp<int64_t>(top, 0, p.x[1]), std::clamp<int64_t>(end, 0, p.x[1])};
        if (x_rows.size() == 0) continue;
        pack_dy(dy, some, down);
        pack_x(x, some, x_rows);
        for (int64_t u = 0; u < wide(); ++u)
          for (int64_t t = 0; t < tall(); ++t) add_tile(t, u, some, down, x_rows, dkernel);
      }
    }
  }
};

// Into how many parts the channels are cut, and the filters into threads / parts: each thread packs what it needs,
// and the last one to end counts.
int64_t channel_parts(int64_t threads, int64_t channels, int64_t filters, int64_t taps) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t parts = 1; parts <= std::min(threads, channels); ++parts) {
    int64_t high = tiles_of(channels, parts), broad = tiles_of(tiles_of(filters, kWide), threads / parts);
    int64_t cost = 2 * taps * high * broad + high + 8 * broad;  // half cycles a pixel
    if (cost < least) best = parts, least = cost;
  }
  return best;
}

}  // namespace

bool has_kernel_gradient(const Problem& p) {
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups, taps = p.kernel[0] * p.kernel[1];
  // Packing has to pay: it is for all taps at once, and a pixel that no tap of a stride sees is packed too.
  bool dense = taps > 1 ? taps * channels * filters >= 1 << 12
                        : p.strides == Dims{1, 1} && channels * filters >= 1 << 18;
  return p.mode == kKernelGradient && p.type == dnnl::memory::data_type::f32 && channels >= kWide &&
         filters >= kWide && dense && widest_vectors() == 8;
}

void kernel_gradient(const Problem& p, Turn& turn, const float* x, const float* dy, float* dkernel) {
  int64_t images = std::max<int64_t>(1, std::min(p.x[0], kPixels / (p.y[1] * p.y[2])));
  int64_t rows = images > 1 ? p.y[1] : std::max<int64_t>(1, std::min(p.y[1], kPixels / p.y[2]));
  int64_t x_rows = std::min(p.x[1], (rows - 1) * p.strides[0] + (p.kernel[0] - 1) * p.dilation[0] + 1);
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups, wide = tiles_of(filters, kWide);
  int64_t threads = std::max<int64_t>(1, omp_get_max_threads() / p.groups);
  int64_t across = channel_parts(threads, channels, filters, p.kernel[0] * p.kernel[1]);
  int64_t down = std::min(wide, threads / across);
  int64_t x_size = tiles_of(channels, across) * images * x_rows * p.x[2];
  int64_t y_size = tiles_of(wide, down) * kWide * images * rows * p.y[2];
  float* scratch = reinterpret_cast<float*>(turn.scratch(omp_get_max_threads() * (x_size + y_size) * sizeof(float)));
#pragma omp parallel for schedule(static, 1)
  for (int64_t index = 0; index < p.groups * across * down; ++index) {
    int64_t group = index / (across * down), i = index / down % across, j = index % down;
    Span tiles = part_of(wide, down, j);
    float* mine = scratch + omp_get_thread_num() * (x_size + y_size);
    Part part{p, group, part_of(channels, across, i), {tiles.begin * kWide, std::min(tiles.end * kWide, filters)},
              images, rows, mine, mine + x_size};
    part.run(x, dy, dkernel);
  }
}

}  // namespace cnnjax
