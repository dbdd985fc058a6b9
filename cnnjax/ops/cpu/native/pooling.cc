// Maximum pooling of NHWC images and its gradient. The gradient goes to the first maximum of a window in
// row-major order; NaN wins over numbers, the last one over the others; padding is never counted.
#include <algorithm>
#include <limits>

#include "engine.h"
#include "loops.h"

namespace cnnjax {
namespace {

using Span = ffi::Span<const int64_t>;
constexpr int64_t kChunk = 256;  // channels at a time: best values and places stay in the first-level cache

template <class T>
CNNJAX_INLINE void start_of(const T* x, int64_t channels, uint8_t tap, float* __restrict best, uint8_t* __restrict place) {
  for (int64_t c = 0; c < channels; ++c) {
    best[c] = widen(x[c]);
    place[c] = tap;
  }
}

template <class T>
CNNJAX_INLINE void compare_of(const T* x, int64_t channels, uint8_t tap, float* __restrict best, uint8_t* __restrict place) {
  for (int64_t c = 0; c < channels; ++c) {
    float value = widen(x[c]);
    bool better = value > best[c] || value != value;
    best[c] = better ? value : best[c];
    place[c] = better ? tap : place[c];
  }
}

template <class T>
CNNJAX_INLINE void collect_of(const T* dy, const uint8_t* place, int64_t channels, uint8_t tap, float* __restrict sum) {
  for (int64_t c = 0; c < channels; ++c) {
    float value = widen(dy[c]);  // a load that hangs on the place is no vector's
    sum[c] += place[c] == tap ? value : 0.0f;
  }
}

template <class T>
CNNJAX_INLINE void store_of(const float* from, int64_t channels, T* __restrict to) {
  for (int64_t c = 0; c < channels; ++c) narrow(from[c], to[c]);
}

struct Window {
  Dims x, y;  // NHWC
  int64_t height, width, down, right, top, left;
};

// One row of the output: each pixel's maxima and their places in the window.
template <class T>
CNNJAX_INLINE void forward_row_of(const Window& w, const T* x, int64_t row, T* y, uint8_t* places) {
  int64_t n = row / w.y[1], h = row % w.y[1], channels = w.x[3];
  int64_t first = h * w.down - w.top;
  float best[kChunk];
  for (int64_t j = 0; j < w.y[2]; ++j) {
    int64_t left = j * w.right - w.left;
    for (int64_t c = 0; c < channels; c += kChunk) {
      int64_t count = std::min(kChunk, channels - c), at = (row * w.y[2] + j) * channels + c;
      bool begun = false;
      for (int64_t a = std::max<int64_t>(0, -first); a < std::min(w.height, w.x[1] - first); ++a)
        for (int64_t b = std::max<int64_t>(0, -left); b < std::min(w.width, w.x[2] - left); ++b) {
          const T* pixel = x + ((n * w.x[1] + first + a) * w.x[2] + left + b) * channels + c;
          uint8_t tap = static_cast<uint8_t>(a * w.width + b);
          if (begun) compare_of(pixel, count, tap, best, places + at);
          else start_of(pixel, count, tap, best, places + at);
          begun = true;
        }
      store_of(best, count, y + at);
    }
  }
}

// One row of the gradient: each pixel takes from the windows that it won.
template <class T>
CNNJAX_INLINE void backward_row_of(const Window& w, const T* dy, const uint8_t* places, int64_t row, T* dx) {
  int64_t n = row / w.x[1], channels = w.x[3], i = row % w.x[1] + w.top;
  float sum[kChunk];
  int64_t last_down = std::min(w.y[1] - 1, i / w.down);
  for (int64_t k = 0; k < w.x[2]; ++k) {
    int64_t j = k + w.left, last_right = std::min(w.y[2] - 1, j / w.right);
    int64_t first_right = std::max<int64_t>(0, (j - w.width) / w.right + (j >= w.width ? 1 : 0));
    int64_t first_down = std::max<int64_t>(0, (i - w.height) / w.down + (i >= w.height ? 1 : 0));
    for (int64_t c = 0; c < channels; c += kChunk) {
      int64_t count = std::min(kChunk, channels - c);
      std::fill(sum, sum + count, 0.0f);
      for (int64_t p = first_down; p <= last_down; ++p)
        for (int64_t q = first_right; q <= last_right; ++q) {
          int64_t at = ((n * w.y[1] + p) * w.y[2] + q) * channels + c;
          uint8_t tap = static_cast<uint8_t>((i - p * w.down) * w.width + j - q * w.right);
          collect_of(dy + at, places + at, count, tap, sum);
        }
      store_of(sum, count, dx + (row * w.x[2] + k) * channels + c);
    }
  }
}

#define CNNJAX_FOR(T)                                                                                          \
  CNNJAX_VECTORIZED void forward_row(const Window& w, const T* x, int64_t row, T* y, uint8_t* places) {       \
    forward_row_of(w, x, row, y, places);                                                                     \
  }                                                                                                           \
  CNNJAX_VECTORIZED void backward_row(const Window& w, const T* dy, const uint8_t* places, int64_t row, T* dx) { \
    backward_row_of(w, dy, places, row, dx);                                                                  \
  }
CNNJAX_FOR(float)
CNNJAX_FOR(BFloat16)

template <class T>
void pool(const Window& w, bool backward, void* first, void* second, void* third) {
  int64_t rows = backward ? w.x[0] * w.x[1] : w.y[0] * w.y[1];
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t row = 0; row < rows; ++row) {
    if (backward) {
      backward_row(w, static_cast<const T*>(first), static_cast<const uint8_t*>(second), row, static_cast<T*>(third));
    } else {
      forward_row(w, static_cast<const T*>(first), row, static_cast<T*>(second), static_cast<uint8_t*>(third));
    }
  }
}

// forward: x -> y, places; backward: dy, places -> dx. Places are a window's taps, row-major, as bytes.
ffi::Error MaxPool(ffi::RemainingArgs arguments, ffi::RemainingRets results, Span window, Span strides,
                   Span padding) {
  return guarded([&] {
    bool backward = arguments.size() == 2;
    check(arguments.size() + results.size() == 3 && results.size() >= 1, arguments.size(), " arguments and ",
          results.size(), " results of maximum pooling");
    check(window.size() == 2 && strides.size() == 2 && padding.size() == 4,
          "window, strides and padding must have 2, 2 and 4 numbers");
    ffi::AnyBuffer first = *arguments.get<ffi::AnyBuffer>(0), result = **results.get<ffi::AnyBuffer>(0);
    ffi::AnyBuffer places = backward ? *arguments.get<ffi::AnyBuffer>(1) : **results.get<ffi::AnyBuffer>(1);
    ffi::AnyBuffer &x = backward ? result : first, &y = backward ? first : result;
    auto type = compute_type("x", x.element_type());
    check_type("y", y.element_type(), x.element_type());
    check_type("places", places.element_type(), ffi::DataType::U8);
    Window w{shape("x", x, 4), shape("y", y, 4), window[0], window[1], strides[0], strides[1], padding[0], padding[2]};
    check_shape("places", shape("places", places, 4), w.y);
    check(w.x[0] == w.y[0] && w.x[3] == w.y[3], "y ", show(w.y), " does not fit x ", show(w.x));
    check(w.height > 0 && w.width > 0 && w.height <= 255 && w.width <= 255 && w.height * w.width <= 255, "window ",
          w.height, " x ", w.width, ": must have 1 to 255 pixels");
    for (int axis = 0; axis < 2; ++axis) {
      int64_t before = padding[2 * axis], after = padding[2 * axis + 1], room = w.x[1 + axis] + before + after;
      check(strides[axis] > 0 && strides[axis] < kLargestAxis && before >= 0 && before < window[axis] &&
                after > -kLargestAxis && after < window[axis],
            "stride ", strides[axis], ", padding ", before, " and ", after, " of window ", window[axis],
            " are out of range");
      check(room >= window[axis] && (room - window[axis]) / strides[axis] + 1 == w.y[1 + axis] &&
                (w.y[1 + axis] - 1) * strides[axis] < w.x[1 + axis] + before,
            "y ", show(w.y), " of x ", show(w.x), ", window ", window[axis], ", stride ", strides[axis],
            ", padding ", before, " and ", after, ": axis ", 1 + axis, " does not fit");
    }
    Turn turn;
    void* second = backward ? places.untyped_data() : y.untyped_data();
    void* third = backward ? x.untyped_data() : places.untyped_data();
    if (type == dnnl::memory::data_type::f32) {
      pool<float>(w, backward, first.untyped_data(), second, third);
    } else {
      pool<BFloat16>(w, backward, first.untyped_data(), second, third);
    }
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxMaxPool, cnnjax::MaxPool,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int64_t>>("window")
                                  .Attr<xla::ffi::Span<const int64_t>>("strides")
                                  .Attr<xla::ffi::Span<const int64_t>>("padding"));
#pragma GCC visibility pop
