// Local response normalization y = x / (k + alpha * sum of n neighbouring channels' squares) ^ (3/4), and its
// gradient, pixel by pixel: all that a pixel needs stays in the first-level cache.
#include <algorithm>
#include <cmath>

#include "engine.h"
#include "loops.h"

namespace cnnjax {
namespace {

// sums[c] = k + alpha * sum of values[c - n / 2 .. c + n / 2]; `values` has n / 2 zeros on each side.
CNNJAX_INLINE void window_of(const float* values, int64_t channels, int64_t n, float k, float alpha, float* __restrict sums) {
  std::fill(sums, sums + channels, 0.0f);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c) sums[c] += values[c + i];
  for (int64_t c = 0; c < channels; ++c) sums[c] = k + alpha * sums[c];
}

template <class T>
CNNJAX_INLINE void forward_of(const T* x, int64_t channels, int64_t n, float k, float alpha, float* __restrict padded,
                              float* __restrict sums, T* __restrict y) {
  for (int64_t c = 0; c < channels; ++c) padded[n / 2 + c] = widen(x[c]) * widen(x[c]);
  window_of(padded, channels, n, k, alpha, sums);
  for (int64_t c = 0; c < channels; ++c) {
    float root = std::sqrt(sums[c]);
    narrow(widen(x[c]) / (root * std::sqrt(root)), y[c]);
  }
}

template <class T>
CNNJAX_INLINE void backward_of(const T* x, const T* dy, int64_t channels, int64_t n, float k, float alpha,
                               float* __restrict padded, float* __restrict sums, T* __restrict dx) {
  for (int64_t c = 0; c < channels; ++c) padded[n / 2 + c] = widen(x[c]) * widen(x[c]);
  window_of(padded, channels, n, k, alpha, sums);
  for (int64_t c = 0; c < channels; ++c) {
    float root = std::sqrt(sums[c]), power = 1 / (root * std::sqrt(root));
    padded[n / 2 + c] = widen(dy[c]) * widen(x[c]) * power / sums[c];
    sums[c] = power;
  }
  float* around = sums + channels;
  window_of(padded, channels, n, 0, -1.5f * alpha, around);
  for (int64_t c = 0; c < channels; ++c) narrow(widen(dy[c]) * sums[c] + widen(x[c]) * around[c], dx[c]);
}

#define CNNJAX_FOR(T)                                                                                          \
  CNNJAX_VECTORIZED void forward(const T* x, int64_t channels, int64_t n, float k, float alpha, float* padded, \
                                 float* sums, T* y) {                                                         \
    forward_of(x, channels, n, k, alpha, padded, sums, y);                                                    \
  }                                                                                                           \
  CNNJAX_VECTORIZED void backward(const T* x, const T* dy, int64_t channels, int64_t n, float k, float alpha, \
                                  float* padded, float* sums, T* dx) {                                        \
    backward_of(x, dy, channels, n, k, alpha, padded, sums, dx);                                              \
  }
CNNJAX_FOR(float)
CNNJAX_FOR(BFloat16)

template <class T>
void normalize(int64_t rows, int64_t channels, int64_t n, float k, float alpha, const void* x, const void* dy,
               void* result) {
#pragma omp parallel
  {
    std::vector<float> padded(channels + n - 1), sums(2 * channels);
#pragma omp for schedule(dynamic, 64)
    for (int64_t row = 0; row < rows; ++row) {
      const T* in = static_cast<const T*>(x) + row * channels;
      T* out = static_cast<T*>(result) + row * channels;
      if (dy) {
        backward(in, static_cast<const T*>(dy) + row * channels, channels, n, k, alpha, padded.data(), sums.data(),
                 out);
      } else {
        forward(in, channels, n, k, alpha, padded.data(), sums.data(), out);
      }
    }
  }
}

// forward: x -> y; backward: x, dy -> dx.
ffi::Error ResponseNorm(ffi::RemainingArgs arguments, ffi::RemainingRets results, int64_t n, float k, float alpha) {
  return guarded([&] {
    check((arguments.size() == 1 || arguments.size() == 2) && results.size() == 1, arguments.size(),
          " arguments and ", results.size(), " results of local response normalization");
    check(n > 0 && n % 2 == 1 && n <= 4096, "a sum of ", n, " channels: must be an odd number up to 4095");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0), y = **results.get<ffi::AnyBuffer>(0);
    auto type = compute_type("x", x.element_type());
    Dims dims = shape("x", x);
    int64_t channels = dims.back(), rows = 1;
    for (size_t axis = 0; axis + 1 < dims.size(); ++axis) rows *= dims[axis];
    auto checked = [&](const char* name, ffi::AnyBuffer buffer) {
      check_type(name, buffer.element_type(), x.element_type());
      check_shape(name, shape(name, buffer), dims);
      return buffer.untyped_data();
    };
    void* result = checked("result", y);
    void* dy = arguments.size() == 2 ? checked("dy", *arguments.get<ffi::AnyBuffer>(1)) : nullptr;
    Turn turn;
    if (type == dnnl::memory::data_type::f32) {
      normalize<float>(rows, channels, n, k, alpha, x.untyped_data(), dy, result);
    } else {
      normalize<BFloat16>(rows, channels, n, k, alpha, x.untyped_data(), dy, result);
    }
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxResponseNorm, cnnjax::ResponseNorm,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("n")
                                  .Attr<float>("k")
                                  .Attr<float>("alpha"));
#pragma GCC visibility pop
