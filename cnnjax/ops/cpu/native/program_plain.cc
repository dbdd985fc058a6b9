// The steps of a network that move and scale numbers.
#include <algorithm>
#include <cmath>
#include <limits>

#include "loops.h"
#include "program.h"

namespace cnnjax {
namespace {

constexpr int64_t kBlock = 512;  // channels whose sums stay in the first-level cache

int64_t parts_of(int64_t size, int64_t most) { return (size + most - 1) / most; }

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

// What one row of outputs reads: `rows` rows of an image, and of them windows of `window` pixels `stride` apart, the
// first from column -left. Of `channels` of the `all` of a pixel.
struct Windows {
  int64_t rows, width, window, stride, left, outputs, channels, all;

  // The columns of a window.
  std::pair<int64_t, int64_t> columns(int64_t output) const {
    int64_t begin = output * stride - left;
    return {std::max<int64_t>(begin, 0), std::min(begin + window, width)};
  }
};

CNNJAX_INLINE void larger(float value, float& y) { y = value > y || value != value ? value : y; }
CNNJAX_INLINE void larger(BFloat16 value, BFloat16& y) {
  float wide = widen(value), best = widen(y);
  cut(wide > best || wide != wide ? wide : best, y);
}
template <class T>
CNNJAX_INLINE void larger(T value, T& y) { y = value > y ? value : y; }

// NaN stays. The largest code is that of the largest number.
template <class T>
CNNJAX_INLINE void largest_body(const Windows& w, const T* x, T* y) {
  for (int64_t output = 0; output < w.outputs; ++output, y += w.all) {
    auto [begin, end] = w.columns(output);
    std::memcpy(static_cast<void*>(y), x + begin * w.all, w.channels * sizeof(T));
    for (int64_t i = 0; i < w.rows; ++i)
      for (int64_t j = begin; j < end; ++j) {
        const T* from = x + (i * w.width + j) * w.all;
#pragma omp simd
        for (int64_t c = 0; c < w.channels; ++c) larger(from[c], y[c]);
      }
  }
}

// The sum of each window times its scale.
template <class T, class U>
CNNJAX_INLINE void sum_body(const Windows& w, const T* x, const float* scales, float unit, U* y) {
  float sums[kBlock];
  for (int64_t output = 0; output < w.outputs; ++output, y += w.all) {
    auto [begin, end] = w.columns(output);
    for (int64_t c = 0; c < w.channels; ++c) sums[c] = 0;
    for (int64_t i = 0; i < w.rows; ++i)
      for (int64_t j = begin; j < end; ++j) {
        const T* from = x + (i * w.width + j) * w.all;
#pragma omp simd
        for (int64_t c = 0; c < w.channels; ++c) sums[c] += widen(from[c]);
      }
    float scale = scales[output] * unit;
    for (int64_t c = 0; c < w.channels; ++c) narrow(sums[c] * scale, y[c]);
  }
}

#define CNNJAX_LARGEST(T) \
  CNNJAX_VECTORIZED void largest(const Windows& w, const T* x, T* y) { largest_body(w, x, y); }
#define CNNJAX_SUM(T, U)                                                                            \
  CNNJAX_VECTORIZED void sum(const Windows& w, const T* x, const float* scales, float unit, U* y) { \
    sum_body(w, x, scales, unit, y);                                                                \
  }
CNNJAX_LARGEST(float)
CNNJAX_LARGEST(BFloat16)
CNNJAX_LARGEST(uint8_t)
CNNJAX_LARGEST(int8_t)
CNNJAX_SUM(float, float)
CNNJAX_SUM(BFloat16, BFloat16)
CNNJAX_SUM(uint8_t, float)
CNNJAX_SUM(int8_t, float)
CNNJAX_SUM(uint8_t, BFloat16)
CNNJAX_SUM(int8_t, BFloat16)

// Rows of outputs are shared; of fewer rows than threads, channels.
template <class T, class U>
void pool(const Step& step, const Value& in, const Value& out, const T* x, U* y, Part part) {
  const Dims& n = step.numbers;
  const int64_t lines = parts_of(in.channels, 16);
  const bool by_channel = part.images * out.height < part.parts && lines >= part.parts;
  int64_t first = 0, last = in.channels;
  if (by_channel) {
    first = lines * part.index / part.parts * 16;
    last = std::min(lines * (part.index + 1) / part.parts * 16, in.channels);
    part.index = 0, part.parts = 1;
  }
  float unit = in.form == kCoded ? step.codes.x.scale : 1;
  auto [begin, end] = part.of(out.height);
  for (int64_t index = begin; index < end; ++index) {
    int64_t row = index % out.height, top = row * n[2] - n[4], i = std::max<int64_t>(top, 0);
    int64_t rows = std::min(top + n[0], in.height) - i;
    const T* from = x + index / out.height * in.size() + i * in.width * in.channels;
    U* to = y + index * out.width * in.channels;
    for (int64_t c = first; c < last; c += kBlock) {
      Windows windows = {rows, in.width, n[1], n[3], n[5], out.width, std::min(kBlock, last - c), in.channels};
      if constexpr (std::is_same_v<T, U>)
        if (step.kind == kMaxPool) largest(windows, from + c, to + c);
      if constexpr (!std::is_integral_v<U>)
        if (step.kind == kSumPool) sum(windows, from + c, step.weights + row * out.width, unit, to + c);
    }
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
  for (int64_t i = begin * c; i < end * c; ++i) narrow(activated(step, widen(y[i])), y[i]);
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

#define CNNJAX_CODE(T)                                                                            \
  CNNJAX_VECTORIZED void decode(const T* from, float scale, int64_t count, float* to) {           \
    for (int64_t c = 0; c < count; ++c) to[c] = widen(from[c]) * scale;                           \
  }                                                                                               \
  CNNJAX_VECTORIZED void encode(const float* from, float factor, int64_t count, T* to) {          \
    constexpr float low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();    \
    constexpr float kWhole = 3 << 22; /* beside it a float32 has no fraction: ties go to even */  \
    for (int64_t c = 0; c < count; ++c) {                                                         \
      float value = std::min(std::max(from[c] * factor, low), high);                              \
      to[c] = static_cast<T>(static_cast<int32_t>(value + kWhole - kWhole));                      \
    }                                                                                             \
  }
CNNJAX_CODE(uint8_t)
CNNJAX_CODE(int8_t)

#define CNNJAX_NUMBERS(T)                                                          \
  CNNJAX_VECTORIZED void decode(const T* from, float, int64_t count, float* to) {  \
    for (int64_t c = 0; c < count; ++c) to[c] = widen(from[c]);                    \
  }                                                                                \
  CNNJAX_VECTORIZED void encode(const float* from, float, int64_t count, T* to) {  \
    for (int64_t c = 0; c < count; ++c) narrow(from[c], to[c]);                    \
  }
CNNJAX_NUMBERS(float)
CNNJAX_NUMBERS(BFloat16)

// Calls `call` with the array as what a value consists of.
template <class T, class Array, class Call>
void with_type(const Value& value, const Coding& as, Array array, Call&& call) {
  if (value.form == kWide) return call(float(), array);
  if (value.form == kOwn) return call(T(), array);
  if (as.is_signed) return call(int8_t(), array);
  call(uint8_t(), array);
}

template <class T>
void read(const Value& value, const Coding& as, const void* from, int64_t at, int64_t count, float* to) {
  with_type<T>(value, as, from, [&](auto one, const void* array) {
    decode(static_cast<const decltype(one)*>(array) + at, as.scale, count, to);
  });
}

// The same channels for some pixels one after the other.
void repeat(std::vector<float>& channels, int64_t count, int64_t times) {
  for (int64_t i = 1; i < times; ++i) std::copy_n(channels.data(), count, channels.data() + i * count);
}

// pointwise of codes or to codes, through float32, some pixels at a time.
template <class T>
void coded(const Step& step, const std::vector<Value>& values, const void* x, const void* other, void* y, Part part) {
  const Value &in = values[step.x], &out = values[step.y];
  bool bare = !step.weights && step.other < 0, times = step.numbers[0] == 1;
  int64_t c = bare ? in.width * in.channels : in.channels, pixels = in.size() / c;
  bool pixel = step.other >= 0 && values[step.other].size() == in.channels;
  float low = step.act == kRelu ? 0 : step.act == kClip ? step.alpha : -INFINITY;
  float high = step.act == kClip ? step.beta : INFINITY;
  const int64_t most = std::max<int64_t>(1, kBlock / c);
  thread_local std::vector<float> one, two, weights, bias;  // allocating them took longer than small steps
  one.resize(most * c), two.resize(most * c), weights.resize(most * c), bias.resize(most * c);
  if (step.weights) {
    std::copy_n(step.weights, c, weights.data()), std::copy_n(step.bias, c, bias.data());
    repeat(weights, c, most), repeat(bias, c, most);
  }
  auto [begin, end] = part.of(pixels);
  for (int64_t index = begin, count; index < end; index += count) {
    count = std::min(most, end - index);
    if (pixel) count = std::min(count, pixels - index % pixels);
    read<T>(in, step.codes.x, x, index * c, count * c, one.data());
    if (other && !pixel) read<T>(values[step.other], step.codes.other, other, index * c, count * c, two.data());
    if (pixel && (index == begin || index % pixels == 0)) {
      read<T>(values[step.other], step.codes.other, other, index / pixels * c, c, two.data());
      repeat(two, c, most);
    }
    const float* beside = other ? two.data() : nullptr;
    row(one.data(), step.weights ? weights.data() : nullptr, bias.data(), times ? nullptr : beside,
        times ? beside : nullptr, low, high, count * c, one.data());
    if (step.act > kClip)
      for (int64_t i = 0; i < count * c; ++i) one[i] = activated(step, one[i]);
    with_type<T>(out, step.codes.y, y, [&](auto number, void* array) {
      encode(one.data(), 1 / step.codes.y.scale, count * c, static_cast<decltype(number)*>(array) + index * c);
    });
  }
}

template <class T>
void numbers(const Step& step, const std::vector<Value>& values, const T* x, const T* other, void* result, Part part) {
  const Value &in = values[step.x], &out = values[step.y];
  T* y = static_cast<T*>(result);
  if (step.kind == kCopy) return copy(step, in, out, x, y, part);
  if (step.kind == kLayerNorm) {
    auto [begin, end] = part.of(in.height * in.width);
    int64_t c = in.channels;
    return norm(x + begin * c, step.weights, step.bias, step.alpha, end - begin, c, y + begin * c);
  }
  bool pixel = step.other >= 0 && values[step.other].size() == in.channels;
  if (out.form == kWide) return pointwise(step, in, pixel, x, other, static_cast<float*>(result), part);
  pointwise(step, in, pixel, x, other, y, part);
}

template <class T>
void run(const Step& step, const std::vector<Value>& values, const void* x, const void* other, void* result,
         Part part) {
  const Value &in = values[step.x], &out = values[step.y];
  bool codes = in.form == kCoded || out.form == kCoded || (step.other >= 0 && values[step.other].form == kCoded);
  if (step.kind == kCopy && codes)
    return copy(step, in, out, static_cast<const uint8_t*>(x), static_cast<uint8_t*>(result), part);
  if (step.kind == kPointwise && codes) return coded<T>(step, values, x, other, result, part);
  if (step.kind == kMaxPool || step.kind == kSumPool)
    return with_type<T>(in, step.codes.x, x, [&](auto one, const void* array) {
      using X = decltype(one);
      using Y = std::conditional_t<std::is_integral_v<X>, T, X>;
      const X* from = static_cast<const X*>(array);
      if (step.kind == kMaxPool) return pool(step, in, out, from, static_cast<X*>(result), part);
      pool(step, in, out, from, static_cast<Y*>(result), part);
    });
  numbers(step, values, static_cast<const T*>(x), static_cast<const T*>(other), result, part);
}

}  // namespace

float activated(const Step& step, float x) {
  auto sigmoid = [](float v) { return 1 / (1 + std::exp(-v)); };
  float hard = std::min(std::max(x / 6 + 0.5f, 0.0f), 1.0f);
  switch (step.act) {
    case kRelu: return x < 0 ? 0 : x;
    case kClip: return x < step.alpha ? step.alpha : x > step.beta ? step.beta : x;
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

template <>
void run_plain<float>(const Step& step, const std::vector<Value>& values, const void* x, const void* other, void* y,
                      Part part) {
  run<float>(step, values, x, other, y, part);
}

template <>
void run_plain<uint16_t>(const Step& step, const std::vector<Value>& values, const void* x, const void* other,
                         void* y, Part part) {
  run<BFloat16>(step, values, x, other, y, part);
}

}  // namespace cnnjax
