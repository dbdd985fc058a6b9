// Gradients of depthwise convolutions, one filter a channel: what the kernels take, and the kernels there are.
#pragma once

#include "convolution.h"

namespace cnnjax {

constexpr int64_t kMostTaps = 49;

// Whether `depthwise` computes this faster than oneDNN.
bool has_depthwise(const Problem& p);

// Input gradient: dy, kernel -> dx; kernel gradient: x, dy -> dkernel.
void depthwise(const Problem& p, Turn& turn, const void* first, const void* second, void* result);

// The passes on vectors of `lanes` numbers, for multiples of so many channels, in float32 or bfloat16.
struct Depthwise {
  int64_t lanes;
  void (*input_gradient[2])(const Problem& p, Turn& turn, const void* dy, const void* kernel, void* dx);
  void (*kernel_gradient[2])(const Problem& p, Turn& turn, const void* x, const void* dy, void* dkernel);
};

extern const Depthwise kDepthwiseAvx2, kDepthwiseAvx512;

}  // namespace cnnjax
