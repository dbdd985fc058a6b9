// Depthwise convolutions, one filter a channel: what the kernels take, and the kernels there are.
#pragma once

#include "convolution.h"

namespace cnnjax {

constexpr int64_t kMostTaps = 49;

// Whether `depthwise` computes this faster than oneDNN.
bool has_depthwise(const Problem& p);

// Forward: x, kernel, bias or null -> y; input gradient: dy, kernel -> dx; kernel gradient: x, dy -> dkernel.
void depthwise(const Problem& p, Turn& turn, const void* first, const void* second, const void* bias, void* result);

// The passes on vectors of `lanes` numbers, for multiples of so many channels, in float32 or bfloat16.
struct Depthwise {
  int64_t lanes;
  void (*convolve[2])(const Problem& p, Turn& turn, const void* first, const void* kernel, const void* bias,
                      void* result);
  void (*kernel_gradient[2])(const Problem& p, Turn& turn, const void* x, const void* dy, void* dkernel);
};

extern const Depthwise kDepthwiseAvx2, kDepthwiseAvx512;

}  // namespace cnnjax
