// Convolutions of stride 1 by Winograd's method: what its kernels take, and the kernels there are.
#pragma once

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

// The passes over windows of one size; T is float, or uint16_t for the bits of bfloat16.
template <class T>
struct Passes {
  void (*convolve)(const Layer& l, Turn& turn, const T* x, const T* kernel, const T* bias, T* y);
  void (*kernel_gradient)(const Layer& l, Turn& turn, const T* x, const T* dy, T* dkernel);
};

// The kernels on vectors of `lanes` numbers, for channels and filters that are multiples of that.
struct Winograd {
  int64_t lanes;
  Passes<float> squares, rows;  // of 3x3 and of 5x5 windows
};

extern const Winograd kWinogradAvx2, kWinogradAvx512;
extern const Passes<uint16_t> kWinogradPairs;  // of 3x3 windows, on AVX-512 with products of bfloat16

}  // namespace cnnjax
