// The gradients of depthwise convolutions of NHWC images, a vector of channels at a time.
//
// A strip of rows of those channels is copied, widened to float32, between columns of zeros: the loops over windows
// then know no borders, and what they read is contiguous and stays in the second-level cache.
#pragma once

#include <algorithm>
#include <utility>

#include "depthwise.h"
#include "vectors.h"

namespace cnnjax {
namespace {

constexpr int64_t kStripBytes = 128 << 10;
constexpr int64_t kChannels = 64;  // that one thread takes: whole cache lines
constexpr int64_t kTile = 7;       // outputs whose sums are in registers; or twice as many
constexpr int64_t kParts = 16;     // of the batch, at most, that have sums of their own

int64_t up(int64_t size, int64_t by) { return (size + by - 1) / by; }

// A channel's images.
struct Plane {
  int64_t height, width, channels;
};

// Copies of rows of `columns` pixels, zeros but for the image's width from column `left` on.
struct Strip {
  int64_t columns, left;
  float* data;

  float* row(int64_t r) const { return data + r * columns * kLanes; }

  // Rows [begin, end) of the image.
  template <class T>
  CNNJAX_VECTORS void fill(const T* image, const Plane& plane, int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) {
      const T* from = image + r * plane.width * plane.channels;
      float* to = row(r - begin) + left * kLanes;
      for (int64_t c = 0; c < plane.width; ++c) store(to + c * kLanes, load(from + c * plane.channels));
    }
  }
};

// One product of a window: where its pixel is, from that of the first output, and the weight.
struct Tap {
  int64_t offset;
  const float* weight;
};

// kCount outputs, of which `kept` are stored.
template <int kCount, class T>
CNNJAX_INLINE void tile(const float* from, const Tap* taps, int64_t count, T* to, int64_t apart, int64_t kept) {
  Vector sums[kCount];
#pragma GCC unroll 14
  for (int i = 0; i < kCount; ++i) sums[i] = all(0);
  for (int64_t t = 0; t < count; ++t) {
    Vector weight = load(taps[t].weight);
    const float* at = from + taps[t].offset;
#pragma GCC unroll 14
    for (int i = 0; i < kCount; ++i) sums[i] = multiply_add(load(at + i * kLanes), weight, sums[i]);
  }
#pragma GCC unroll 14
  for (int i = 0; i < kCount; ++i)
    if (i < kept) store(to + i * apart, sums[i]);
}

template <class T>
CNNJAX_VECTORS void row_of(const float* from, const Tap* taps, int64_t count, T* to, int64_t apart, int64_t outputs) {
  for (int64_t o = 0; o < outputs;) {
    const float* at = from + o * kLanes;
    if (outputs - o >= 2 * kTile) {
      tile<2 * kTile>(at, taps, count, to + o * apart, apart, 2 * kTile);
      o += 2 * kTile;
    } else {
      tile<kTile>(at, taps, count, to + o * apart, apart, outputs - o);
      o += kTile;
    }
  }
}

// What either gradient reads and writes. An axis of the input gradient (`back`) falls into `stride` phases: of stride 2
// it takes every other tap at every other output.
struct Pass {
  Plane in, out;
  int64_t height, width, stride, top, side;  // of the window; padding
  bool back;
  int64_t left, columns, strip_rows;

  explicit Pass(const Problem& p)
      : in{p.x[1], p.x[2], p.x[3]}, out{p.y[1], p.y[2], p.x[3]}, height(p.kernel[0]), width(p.kernel[1]),
        stride(p.strides[0]), top(p.padding[0]), side(p.padding[2]), back(p.mode == kInputGradient) {
    if (back) std::swap(in, out);
    left = back ? up(width - 1 - side, stride) : side;
    int64_t outputs = up(up(out.width, back ? stride : 1), kTile) * kTile;
    int64_t last = back ? (stride - 1 + side) / stride + left : width - 1;
    columns = std::max(left + in.width, (outputs - 1) * (back ? 1 : stride) + last + 1);
    int64_t rows = std::max<int64_t>(1, kStripBytes / (columns * kLanes * 4) - height);
    strip_rows = std::min(out.height, back ? rows * stride : up(rows, stride));
  }

  // Rows of `in` that the outputs [begin, end) see.
  std::pair<int64_t, int64_t> rows(int64_t begin, int64_t end) const {
    int64_t first = back ? up(std::max<int64_t>(0, begin + top - height + 1), stride) : begin * stride - top;
    int64_t last = back ? (end - 1 + top) / stride : (end - 1) * stride - top + height - 1;
    first = std::max<int64_t>(0, first);
    return {first, std::max(first, std::min(in.height, last + 1))};
  }

  size_t strip_floats() const {
    int64_t most = back ? (strip_rows + height) / stride + 2 : (strip_rows - 1) * stride + height;
    return static_cast<size_t>(std::min(in.height, most) * columns * kLanes);
  }

  // The taps of a row of the input gradient in one phase of columns, if the strip begins with row `first`.
  int64_t taps(int64_t row, int64_t phase, int64_t first, const float* weights, Tap* to) const {
    int64_t count = 0;
    for (int64_t i = 0; i < height; ++i) {
      int64_t r = row + top - i;
      if (r < 0 || r % stride || r / stride >= in.height) continue;
      for (int64_t j = 0; j < width; ++j) {
        int64_t column = phase + side - j + stride * width;
        if (column % stride) continue;
        column = column / stride - width + left;
        to[count++] = {((r / stride - first) * columns + column) * kLanes, weights + (i * width + j) * kLanes};
      }
    }
    return count;
  }
};

template <class T>
CNNJAX_VECTORS void pack_weights(const Pass& p, const T* kernel, float* packed) {
  for (int64_t t = 0; t < p.height * p.width; ++t) store(packed + t * kLanes, load(kernel + t * p.in.channels));
}

// A vector of channels of one image.
template <class T>
CNNJAX_VECTORS void input_gradient_image(const Pass& p, const Strip& strip, const T* dy, const float* weights, T* dx) {
  Tap taps[kMostTaps];
  for (int64_t begin = 0; begin < p.out.height; begin += p.strip_rows) {
    int64_t end = std::min(p.out.height, begin + p.strip_rows);
    auto [first, last] = p.rows(begin, end);
    strip.fill(dy, p.in, first, last);
    for (int64_t row = begin; row < end; ++row)
      for (int64_t phase = 0; phase < std::min(p.stride, p.out.width); ++phase) {
        int64_t count = p.taps(row, phase, first, weights, taps), channels = p.out.channels;
        T* to = dx + (row * p.out.width + phase) * channels;
        row_of(strip.data, taps, count, to, p.stride * channels, up(p.out.width - phase, p.stride));
      }
  }
}

template <class T>
void input_gradient(const Problem& problem, Turn& turn, const void* dy_, const void* kernel_, void* result) {
  Pass p(problem);
  auto dy = static_cast<const T*>(dy_), kernel = static_cast<const T*>(kernel_);
  T* dx = static_cast<T*>(result);
  int64_t channels = p.in.channels, groups = up(channels, kChannels);
  size_t floats = p.strip_floats();
  float* scratch = reinterpret_cast<float*>(turn.scratch(omp_get_max_threads() * floats * sizeof(float)));
#pragma omp parallel
  {
    Strip strip = {p.columns, p.left, scratch + omp_get_thread_num() * floats};
    std::fill(strip.data, strip.data + floats, 0.0f);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < problem.x[0] * groups; ++i) {
      int64_t n = i / groups, begin = i % groups * kChannels;
      for (int64_t c = begin; c < std::min(channels, begin + kChannels); c += kLanes) {
        alignas(64) float weights[kMostTaps * kLanes];
        pack_weights(p, kernel + c, weights);
        input_gradient_image(p, strip, dy + n * p.in.height * p.in.width * channels + c, weights,
                             dx + n * p.out.height * p.out.width * channels + c);
      }
    }
  }
}

// Adds the products of rows of dy, `rows` of them, and of those rows of x that a row of the window meets.
template <int kWidth, int kStep>
CNNJAX_VECTORS void gradient_rows(const float* x, int64_t x_apart, const float* dy, int64_t width, int64_t rows,
                                  float* sums) {
  Vector total[kWidth];
#pragma GCC unroll 7
  for (int j = 0; j < kWidth; ++j) total[j] = load(sums + j * kLanes);
  for (int64_t r = 0; r < rows; ++r, x += x_apart, dy += width * kLanes)
    for (int64_t c = 0; c < width; ++c) {
      Vector grad = load(dy + c * kLanes);
#pragma GCC unroll 7
      for (int j = 0; j < kWidth; ++j)
        total[j] = multiply_add(load(x + (c * kStep + j) * kLanes), grad, total[j]);
    }
#pragma GCC unroll 7
  for (int j = 0; j < kWidth; ++j) store(sums + j * kLanes, total[j]);
}

using GradientRows = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*);

GradientRows gradient_rows_for(int64_t width, int64_t stride) {
  if (width == 3) return stride == 1 ? gradient_rows<3, 1> : gradient_rows<3, 2>;
  if (width == 5) return stride == 1 ? gradient_rows<5, 1> : gradient_rows<5, 2>;
  return stride == 1 ? gradient_rows<7, 1> : gradient_rows<7, 2>;
}

// Adds one image's part of the gradient of a vector of channels.
template <class T>
CNNJAX_VECTORS void kernel_gradient_image(const Pass& p, const Strip& xs, const Strip& dys, const T* x, const T* dy,
                                          float* sums) {
  GradientRows run = gradient_rows_for(p.width, p.stride);
  for (int64_t begin = 0; begin < p.out.height; begin += p.strip_rows) {
    int64_t end = std::min(p.out.height, begin + p.strip_rows);
    auto [first, last] = p.rows(begin, end);
    xs.fill(x, p.in, first, last);
    dys.fill(dy, p.out, begin, end);
    for (int64_t i = 0; i < p.height; ++i) {
      // Rows of dy whose row of x, r * stride - top + i, lies in the image.
      int64_t from = std::max(begin, up(std::max<int64_t>(0, p.top - i), p.stride));
      int64_t room = p.in.height - 1 + p.top - i;
      int64_t to = room < 0 ? from : std::min(end, room / p.stride + 1);
      if (from < to)
        run(xs.row(from * p.stride - p.top + i - first), p.stride * p.columns * kLanes, dys.row(from - begin),
            p.out.width, to - from, sums + i * p.width * kLanes);
    }
  }
}

template <class T>
CNNJAX_VECTORS void sum_parts(const float* sums, int64_t parts, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector total = load(sums + i);
    for (int64_t part = 1; part < parts; ++part) total += load(sums + part * size + i);
    store(to + i, total);
  }
}

CNNJAX_VECTORS void add_sums(const float* sums, int64_t taps, int64_t channels, float* to) {
  for (int64_t t = 0; t < taps; ++t) store(to + t * channels, load(to + t * channels) + load(sums + t * kLanes));
}

template <class T>
void kernel_gradient(const Problem& problem, Turn& turn, const void* x_, const void* dy_, void* dkernel) {
  Pass p(problem);
  auto x = static_cast<const T*>(x_), dy = static_cast<const T*>(dy_);
  int64_t count = problem.x[0], channels = p.in.channels, groups = up(channels, kChannels);
  int64_t parts = std::min(count, kParts), taps = p.height * p.width, size = taps * channels;
  size_t floats = p.strip_floats(), dy_floats = static_cast<size_t>(p.strip_rows * p.out.width * kLanes);
  size_t all_floats = omp_get_max_threads() * (floats + dy_floats);
  float* scratch = reinterpret_cast<float*>(turn.scratch((all_floats + parts * size) * sizeof(float)));
  float* sums = scratch + all_floats;
#pragma omp parallel
  {
    float* own = scratch + omp_get_thread_num() * (floats + dy_floats);
    Strip xs = {p.columns, p.left, own}, dys = {p.out.width, 0, own + floats};
    std::fill(own, own + floats, 0.0f);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < parts * groups; ++i) {
      int64_t part = i / groups, begin = i % groups * kChannels, end = std::min(channels, begin + kChannels);
      float* to = sums + part * size;
      for (int64_t t = 0; t < taps; ++t) std::fill(to + t * channels + begin, to + t * channels + end, 0.0f);
      for (int64_t n = part * count / parts; n < (part + 1) * count / parts; ++n)
        for (int64_t c = begin; c < end; c += kLanes) {
          alignas(64) float image[kMostTaps * kLanes] = {};
          kernel_gradient_image(p, xs, dys, x + n * p.in.height * p.in.width * channels + c,
                                dy + n * p.out.height * p.out.width * channels + c, image);
          add_sums(image, taps, channels, to + c);
        }
    }
  }
  sum_parts(sums, parts, size, static_cast<T*>(dkernel));
}

}  // namespace
}  // namespace cnnjax
