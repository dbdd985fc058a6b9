// Rows of 2x2 windows, normalized, with or without a ReLU, and pooled by their maximum, and the gradient of that.
// The normalized image is never written: each pass makes it again from x. The gradient goes to the first maximum of
// a window in row-major order; NaN wins over numbers, the last one over the others.
#pragma once

#include <algorithm>

#include "engine.h"
#include "loops.h"

// With jump threading GCC makes branches of the selections below, and scalar code of the loops around them. (Without
// it the loops of `pooling.cc` become scalar.)
#pragma GCC push_options
#pragma GCC optimize("no-thread-jumps")

namespace cnnjax {

constexpr int64_t kBlockBytes = 1 << 16;  // of x or y at a time, so that they stay in a core's cache
constexpr int64_t kLanes = 16;  // channels at a time

// One row of windows, 16 channels of it: the lower pixels of a window are `below` values after the upper ones.
struct WindowRow {
  int64_t windows, channels, below;
  const float *factor, *mean, *bias;
  float floor;  // -inf without a ReLU
};

// One channel of a window: its pixels' distances from the mean, the maximum and where it is. Plain numbers, no
// arrays, so that the loops over channels become vector code.
struct Maximum {
  float first, second, third, fourth, value, distance;
  int32_t place;
};

template <class T>
CNNJAX_INLINE void compare_of(const WindowRow& w, int64_t c, float distance, int32_t place, const T* type,
                              Maximum& best) {
  float value = distance * w.factor[c] + w.bias[c];
  value = round_as(value < w.floor ? w.floor : value, type);  // NaN stays
  bool better = (place == 0) | (value > best.value) | (value != value);
  best.value = better ? value : best.value;
  best.distance = better ? distance : best.distance;
  best.place = better ? place : best.place;
}

template <class T>
CNNJAX_INLINE Maximum maximum_of(const WindowRow& w, const T* x, int64_t c) {
  const T* lower = x + w.below;
  Maximum best{};
  best.first = widen(x[c]) - w.mean[c];
  best.second = widen(x[w.channels + c]) - w.mean[c];
  best.third = widen(lower[c]) - w.mean[c];
  best.fourth = widen(lower[w.channels + c]) - w.mean[c];
  compare_of(w, c, best.first, 0, x, best);
  compare_of(w, c, best.second, 1, x, best);
  compare_of(w, c, best.third, 2, x, best);
  compare_of(w, c, best.fourth, 3, x, best);
  return best;
}

// What of the gradient the maximum takes: none where the ReLU stopped it.
CNNJAX_INLINE float taken_of(const WindowRow& w, const Maximum& best, float grad) {
  return best.value <= w.floor ? 0.0f : grad;
}

template <class T>
CNNJAX_INLINE void normalize_windows_of(const WindowRow& w, const T* x, T* __restrict y) {
  for (int64_t j = 0; j < w.windows; ++j, x += 2 * w.channels, y += w.channels)
    for (int64_t c = 0; c < kLanes; ++c) narrow(maximum_of(w, x, c).value, y[c]);
}

// Adds to dscale and dbias.
template <class T>
CNNJAX_INLINE void sums_windows_of(const WindowRow& w, const T* x, const T* dy, float* __restrict dscale,
                                   float* __restrict dbias) {
  for (int64_t j = 0; j < w.windows; ++j, x += 2 * w.channels, dy += w.channels)
    for (int64_t c = 0; c < kLanes; ++c) {
      Maximum best = maximum_of(w, x, c);
      float grad = taken_of(w, best, widen(dy[c]));
      dscale[c] += grad * best.distance;
      dbias[c] += grad;
    }
}

template <class T>
CNNJAX_INLINE void gradient_windows_of(const WindowRow& w, const T* x, const T* dy, const float* slope,
                                       const float* offset, T* __restrict dx) {
  for (int64_t j = 0; j < w.windows; ++j, x += 2 * w.channels, dy += w.channels, dx += 2 * w.channels)
    for (int64_t c = 0; c < kLanes; ++c) {
      Maximum best = maximum_of(w, x, c);
      float grad = w.factor[c] * taken_of(w, best, widen(dy[c]));
      T* lower = dx + w.below;
      narrow((best.place == 0 ? grad : 0.0f) - offset[c] - best.first * slope[c], dx[c]);
      narrow((best.place == 1 ? grad : 0.0f) - offset[c] - best.second * slope[c], dx[w.channels + c]);
      narrow((best.place == 2 ? grad : 0.0f) - offset[c] - best.third * slope[c], lower[c]);
      narrow((best.place == 3 ? grad : 0.0f) - offset[c] - best.fourth * slope[c], lower[w.channels + c]);
    }
}

#define CNNJAX_FOR_WINDOWS(T)                                                                                         \
  CNNJAX_VECTORIZED static void normalize_windows(const WindowRow& w, const T* x, T* y) {                            \
    normalize_windows_of(w, x, y);                                                                                   \
  }                                                                                                                  \
  CNNJAX_VECTORIZED static void sums_windows(const WindowRow& w, const T* x, const T* dy, float* dscale,             \
                                             float* dbias) {                                                         \
    sums_windows_of(w, x, dy, dscale, dbias);                                                                        \
  }                                                                                                                  \
  CNNJAX_VECTORIZED static void gradient_windows(const WindowRow& w, const T* x, const T* dy, const float* slope,    \
                                                 const float* offset, T* dx) {                                       \
    gradient_windows_of(w, x, dy, slope, offset, dx);                                                                \
  }
CNNJAX_FOR_WINDOWS(float)
CNNJAX_FOR_WINDOWS(BFloat16)

// Images whose 2x2 windows are pooled; no windows without pooling.
struct Windows {
  int64_t rows = 0, windows = 0, channels = 0, block_rows = 1, blocks = 0;
  float floor = 0;  // as in WindowRow

  Windows() = default;
  Windows(const Dims& x, float floor_)
      : rows(x[0] * (x[1] / 2)), windows(x[2] / 2), channels(x[3]), floor(floor_) {
    block_rows = std::max<int64_t>({1, kBlockBytes / (16 * windows * channels), rows / 512});
    blocks = (rows + block_rows - 1) / block_rows;
  }
  // body(block, row of windows, first value in x, first value in y, first channel), in parallel over the blocks
  template <class Body>
  void each(const float* factor, const float* mean, const float* bias, const Body& body) const {
    int64_t below = 2 * windows * channels;
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t r = b * block_rows; r < std::min(rows, (b + 1) * block_rows); ++r)
        for (int64_t c = 0; c < channels; c += kLanes) {
          WindowRow row{windows, channels, below, factor + c, mean + c, bias + c, floor};
          body(b, row, 2 * r * below + c, r * windows * channels + c, c);
        }
  }
};

}  // namespace cnnjax

#pragma GCC pop_options
