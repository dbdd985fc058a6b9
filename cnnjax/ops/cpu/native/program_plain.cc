// The steps of a network that move and scale numbers, and the check of every step.
#include <algorithm>
#include <cmath>

#include "loops.h"
#include "program.h"

namespace cnnjax {
namespace {

float activated(Act act, float x, float alpha, float beta) {
  auto sigmoid = [](float v) { return 1 / (1 + std::exp(-v)); };
  float hard = std::min(std::max(x / 6 + 0.5f, 0.0f), 1.0f);
  switch (act) {
    case kSwish: return x * sigmoid(x);
    case kGelu: return 0.5f * x * std::erfc(-x * 0.70710678f);
    case kGeluTanh: return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case kHardSwish: return x * hard;
    case kLogistic: return sigmoid(x);
    case kHardSigmoid: return hard;
    case kTanh: return std::tanh(x);
    default: return x;
  }
}

// A row of channels: (x * weights + bias) and what stands beside it, between low and high; NaN stays.
template <class T, class U>
CNNJAX_INLINE void row_body(const T* x, const float* weights, const float* bias, const T* plus, const T* times,
                            float low, float high, int64_t count, U* y) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    float value = widen(x[c]);
    if (weights) value = value * weights[c] + bias[c];
    if (plus) value += widen(plus[c]);
    if (times) value *= widen(times[c]);
    value = value < low ? low : value;
    narrow(value > high ? high : value, y[c]);
  }
}

#define CNNJAX_ROW(T, U)                                                                                          \
  CNNJAX_VECTORIZED void row(const T* x, const float* w, const float* b, const T* plus, const T* times, float low, \
                             float high, int64_t count, U* y) {                                                   \
    row_body(x, w, b, plus, times, low, high, count, y);                                                          \
  }
CNNJAX_ROW(float, float)
CNNJAX_ROW(BFloat16, BFloat16)
CNNJAX_ROW(BFloat16, float)

template <class T, bool kMax>
CNNJAX_INLINE void window_body(const T* x, int64_t rows, int64_t columns, int64_t across, int64_t channels,
                               float scale, float* sums, T* y) {
  for (int64_t c = 0; c < channels; ++c) sums[c] = kMax ? widen(x[c]) : 0.0f;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const T* from = x + (i * across + j) * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        float value = widen(from[c]);
        if (kMax) sums[c] = value > sums[c] || value != value ? value : sums[c];
        else sums[c] += value;
      }
    }
  for (int64_t c = 0; c < channels; ++c) narrow(kMax ? sums[c] : sums[c] * scale, y[c]);
}

#define CNNJAX_WINDOW(T)                                                                                       \
  CNNJAX_VECTORIZED void window(bool max, const T* x, int64_t rows, int64_t columns, int64_t across, int64_t c, \
                                float scale, float* sums, T* y) {                                              \
    if (max) window_body<T, true>(x, rows, columns, across, c, scale, sums, y);                                \
    else window_body<T, false>(x, rows, columns, across, c, scale, sums, y);                                   \
  }
CNNJAX_WINDOW(float)
CNNJAX_WINDOW(BFloat16)

template <class T>
void pool(const Step& step, const Value& in, const Value& out, const T* x, T* y, Part part) {
  const Dims& n = step.numbers;
  std::vector<float> sums(in.channels);
  auto [begin, end] = part.of(out.height * out.width);
  for (int64_t index = begin; index < end; ++index) {
    int64_t pixel = index % (out.height * out.width), image = index / (out.height * out.width);
    int64_t top = pixel / out.width * n[2] - n[4], left = pixel % out.width * n[3] - n[5];
    int64_t i = std::max<int64_t>(top, 0), j = std::max<int64_t>(left, 0);
    int64_t rows = std::min(top + n[0], in.height) - i, columns = std::min(left + n[1], in.width) - j;
    const T* from = x + image * in.size() + (i * in.width + j) * in.channels;
    float scale = step.kind == kSumPool ? step.weights[pixel] : 0;
    window(step.kind == kMaxPool, from, rows, columns, in.width, in.channels, scale, sums.data(),
           y + index * in.channels);
  }
}

template <class T, class U>
void pointwise(const Step& step, const Value& in, bool pixel, const T* x, const T* other, U* y, Part part) {
  constexpr float kInfinity = INFINITY;
  bool times = step.numbers[0] == 1;
  float low = step.act == kRelu ? 0 : step.act == kClip ? step.alpha : -kInfinity;
  float high = step.act == kClip ? step.beta : kInfinity;
  int64_t pixels = in.height * in.width, c = in.channels;
  auto [begin, end] = part.of(pixels);
  for (int64_t index = begin; index < end; ++index) {
    const T* beside = other ? other + (pixel ? index / pixels : index) * c : nullptr;
    row(x + index * c, step.weights, step.bias, times ? nullptr : beside, times ? beside : nullptr, low, high, c,
        y + index * c);
  }
  if (step.act <= kClip) return;
  for (int64_t i = begin * c; i < end * c; ++i) narrow(activated(step.act, widen(y[i]), 0, 0), y[i]);
}

template <class T>
void copy(const Step& step, const Value& in, const Value& out, const T* x, T* y, Part part) {
  const Dims& n = step.numbers;
  if (n[11] && part.index > 0) return;
  if (n[11]) part.parts = 1, std::memset(static_cast<void*>(y), 0, part.images * out.size() * sizeof(T));
  auto [begin, end] = part.of(n[5] * n[6]);
  for (int64_t index = begin; index < end; ++index) {
    int64_t image = index / (n[5] * n[6]), i = index / n[6] % n[5], j = index % n[6];
    const T* from = x + image * in.size() + ((n[0] + i * n[3]) * in.width + n[1] + j * n[4]) * in.channels + n[2];
    T* to = y + image * out.size() + ((n[8] + i) * out.width + n[9] + j) * out.channels + n[10];
    std::memcpy(static_cast<void*>(to), from, n[7] * sizeof(T));
  }
}

template <class T>
CNNJAX_INLINE void norm_body(const T* x, const float* weights, const float* bias, float epsilon, int64_t rows,
                             int64_t channels, T* y) {
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; ++c) sum += widen(x[c]);
    float mean = sum / channels;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < channels; ++c) squares += (widen(x[c]) - mean) * (widen(x[c]) - mean);
    float factor = 1 / std::sqrt(squares / channels + epsilon);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) narrow((widen(x[c]) - mean) * factor * weights[c] + bias[c], y[c]);
  }
}

#define CNNJAX_NORM(T)                                                                                          \
  CNNJAX_VECTORIZED void norm(const T* x, const float* w, const float* b, float epsilon, int64_t rows, int64_t c, \
                              T* y) {                                                                           \
    norm_body(x, w, b, epsilon, rows, c, y);                                                                    \
  }
CNNJAX_NORM(float)
CNNJAX_NORM(BFloat16)

template <class T>
void run(const Step& step, const std::vector<Value>& values, const T* x, const T* other, void* result, Part part) {
  const Value &in = values[step.x], &out = values[step.y];
  T* y = static_cast<T*>(result);
  if (step.kind == kMaxPool || step.kind == kSumPool) return pool(step, in, out, x, y, part);
  if (step.kind == kCopy) return copy(step, in, out, x, y, part);
  if (step.kind == kLayerNorm) {
    auto [begin, end] = part.of(in.height * in.width);
    int64_t c = in.channels;
    return norm(x + begin * c, step.weights, step.bias, step.alpha, end - begin, c, y + begin * c);
  }
  bool pixel = step.other >= 0 && values[step.other].size() == in.channels;
  if (out.wide) return pointwise(step, in, pixel, x, other, static_cast<float*>(result), part);
  pointwise(step, in, pixel, x, other, y, part);
}

void check_convolution(const Step& step, const Value& in, const Value& out) {
  const Dims& n = step.numbers;
  check(n.size() == 11, "convolution of ", n.size(), " numbers");
  for (int64_t number : n) check(number >= 0 && number < kLargestAxis, "convolution ", show(n));
  check(n[0] > 0 && n[1] > 0 && n[2] > 0 && n[3] > 0 && n[8] > 0 && n[9] > 0 && n[10] > 0, "convolution ", show(n));
  check(in.channels % n[10] == 0 && out.channels % n[10] == 0, "groups ", n[10]);
  check(step.weight_count == n[0] * n[1] * (in.channels / n[10]) * out.channels, "weights ", step.weight_count);
  int64_t rows = in.height + n[4] + n[5] - (n[0] - 1) * n[8] - 1;
  int64_t columns = in.width + n[6] + n[7] - (n[1] - 1) * n[9] - 1;
  check(rows >= 0 && columns >= 0 && rows / n[2] + 1 == out.height && columns / n[3] + 1 == out.width,
        "convolution ", show(n), " to ", out.height, " x ", out.width);
}

void check_copy(const Dims& n, const Value& in, const Value& out) {
  check(n.size() == 12, "copy of ", n.size(), " numbers");
  for (int64_t number : n) check(number >= 0 && number < kLargestAxis, "copy ", show(n));
  check(n[5] > 0 && n[6] > 0 && n[7] > 0 && n[0] + (n[5] - 1) * n[3] < in.height &&
            n[1] + (n[6] - 1) * n[4] < in.width && n[2] + n[7] <= in.channels && n[8] + n[5] <= out.height &&
            n[9] + n[6] <= out.width && n[10] + n[7] <= out.channels,
        "copy ", show(n), " leaves its arrays");
}

void check_pool(const Step& step, const Value& in, const Value& out) {
  const Dims& n = step.numbers;
  check(n.size() == 6, "pooling of ", n.size(), " numbers");
  for (int i = 0; i < 6; ++i) check(n[i] >= (i < 4) && n[i] < kLargestAxis, "pooling ", show(n));
  check(n[4] < n[0] && n[5] < n[1] && in.channels == out.channels && (out.height - 1) * n[2] - n[4] < in.height &&
            (out.width - 1) * n[3] - n[5] < in.width,
        "pooling ", show(n), ": a window without pixels");
  check(step.kind == kMaxPool || step.weight_count == out.height * out.width, "weights ", step.weight_count);
}

}  // namespace

void check_step(const Step& step, const std::vector<Value>& values) {
  int64_t count = static_cast<int64_t>(values.size());
  check(step.x >= 0 && step.x < count && step.y >= 0 && step.y < count && step.x != step.y && step.other < count &&
            (step.other != step.y || step.kind <= kDense),
        "values ", step.x, ", ", step.other, ", ", step.y, " of ", count);
  const Value &in = values[step.x], &out = values[step.y];
  bool pointwise = step.kind == kPointwise, dense = step.kind == kDense, convolve = step.kind == kConvolve;
  check(step.kind >= kConvolve && step.kind <= kLayerNorm && step.act >= kNone && step.act <= kTanh, "kind ", step.kind);
  check(!in.wide && (!out.wide || pointwise || dense), "values between the steps are all of one type");
  bool alike = in.height == out.height && in.width == out.width;
  if (convolve) check_convolution(step, in, out);
  if (dense) {
    bool vector = out.height * out.width == 1;
    check((vector || alike) && step.weight_count == (vector ? in.size() : in.channels) * out.channels, "weights ",
          step.weight_count);
  }
  if (step.kind == kMaxPool || step.kind == kSumPool) check_pool(step, in, out);
  if (step.kind == kCopy) check_copy(step.numbers, in, out);
  if (pointwise || step.kind == kLayerNorm) {
    bool bare = pointwise && !step.weights && step.other < 0;  // takes values of another shape
    check(bare ? in.size() == out.size() : alike && in.channels == out.channels, "x and y differ");
    bool vectors = step.weight_count == in.channels && step.bias_count == in.channels;
    check(vectors || (pointwise && !step.weights && !step.bias), "weights ", step.weight_count, ", bias ",
          step.bias_count);
    check(!pointwise || step.numbers.size() == 1, "pointwise of ", step.numbers.size(), " numbers");
  }
  if ((dense || convolve) && step.bias) check(step.bias_count == out.channels, "bias ", step.bias_count);
  if (step.other >= 0) {
    const Value& other = values[step.other];
    bool fits = other.size() == out.size() || (pointwise && other.size() == in.channels);
    check(fits && !other.wide && !out.wide && (pointwise || dense || convolve), "values that are added differ");
  }
}

template <>
void run_plain(const Step& step, const std::vector<Value>& values, const float* x, const float* other, void* y,
               Part part) {
  run(step, values, x, other, y, part);
}

template <>
void run_plain(const Step& step, const std::vector<Value>& values, const uint16_t* x, const uint16_t* other, void* y,
               Part part) {
  run(step, values, reinterpret_cast<const BFloat16*>(x), reinterpret_cast<const BFloat16*>(other), y, part);
}

}  // namespace cnnjax
