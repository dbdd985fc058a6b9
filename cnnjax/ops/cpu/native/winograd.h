// Convolutions of stride 1 by Winograd's method: what its kernels take, and the kernels there are.
#pragma once

#include <cmath>

#include "convolution.h"

namespace cnnjax {

constexpr int64_t kOut = 4;  // outputs of a tile along an axis

// Images of one group: `channels` of the `all` of a pixel.
struct Images {
  int64_t height, width, channels, all;
};

// A convolution of stride 1, whose input gradient is another one. A weight lies at tap * `tap` + input channel *
// `input` + output channel * `output`.
struct Layer {
  int64_t count, groups;
  Images in, out;
  int64_t top, left;  // zeros before the inputs
  int64_t tap, input, output;
  bool flipped;  // the taps stand in reverse
};

// What becomes of an output before it is stored: the bias is added, what y holds if it adds, and it is cut to [low, high].
struct Ends {
  const float* bias = nullptr;
  bool adds = false;
  float low = -INFINITY, high = INFINITY;
};

// A convolution with weights that are transformed once; `scratch` and `weights` count floats.
template <class T>
struct Packed {
  int64_t (*weights)(const Layer& l);
  int64_t (*scratch)(const Layer& l, int64_t threads);
  void (*pack)(const Layer& l, const T* kernel, float* u);
  void (*convolve)(const Layer& l, const float* u, const T* x, const Ends& ends, T* y, float* scratch,
                   int64_t threads);
};

// The passes over windows of one size; T is float, or uint16_t for the bits of bfloat16.
template <class T>
struct Passes {
  void (*convolve)(const Layer& l, Turn& turn, const T* x, const T* kernel, const T* bias, T* y);
  void (*kernel_gradient)(const Layer& l, Turn& turn, const T* x, const T* dy, T* dkernel);
  Packed<T> packed;
};

// The kernels on vectors of `lanes` numbers, for channels and filters that are multiples of that.
struct Winograd {
  int64_t lanes;
  Passes<float> squares, rows;  // of 3x3 and of 5x5 windows
};

extern const Winograd kWinogradAvx2, kWinogradAvx512;
extern const Passes<uint16_t> kWinogradPairs;  // of 3x3 windows, on AVX-512 with products of bfloat16

// What is faster than oneDNN's layers in a network in use, for windows of `window` x `window`; else null. T is as in
// Passes.
template <class T>
const Packed<T>* packed_winograd(const Layer& l, int64_t window);

}  // namespace cnnjax
