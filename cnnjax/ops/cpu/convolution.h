// A convolution as its caller sees it.
#pragma once

#include "engine.h"

namespace cnnjax {

enum Mode : int64_t { kForward, kInputGradient, kKernelGradient };

struct Problem {
  Mode mode;
  dnnl::memory::data_type type;
  Dims x, kernel, y;  // NHWC, HWIO, NHWC
  Dims strides, padding, dilation;
  int64_t groups, threads;
  bool bias;

  std::string key() const {
    return cache_key({{mode, static_cast<int64_t>(type), groups, threads, bias}, x, kernel, y, strides, padding,
                      dilation});
  }
};

// Whether `kernel_gradient` computes this faster than oneDNN's code for processors with AVX2 and no AVX-512.
bool has_kernel_gradient(const Problem& p);

void kernel_gradient(const Problem& p, Turn& turn, const float* x, const float* dy, float* dkernel);

// Whether `winograd` computes this faster than oneDNN and `kernel_gradient`.
bool has_winograd(const Problem& p);

// The forward pass of x and the kernel, or the input gradient of dy and the kernel.
void winograd(const Problem& p, Turn& turn, const float* first, const float* kernel, const float* bias, float* result);

}  // namespace cnnjax
