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

// The floats of the widest vectors that oneDNN may use, and so the kernels beside it: 16 (AVX-512), 8 (AVX2) or 0.
// ONEDNN_MAX_CPU_ISA limits them.
inline int64_t widest_vectors() {
  static const int here = static_cast<int>(dnnl::get_effective_cpu_isa());
  auto has = [](dnnl::cpu_isa set) { return (here & static_cast<int>(set)) == static_cast<int>(set); };
  if (has(dnnl::cpu_isa::avx512_core)) return 16;
  return has(dnnl::cpu_isa::avx2) && __builtin_cpu_supports("fma") ? 8 : 0;
}

// Whether `kernel_gradient` computes this faster than oneDNN's code for processors with AVX2 and no AVX-512.
bool has_kernel_gradient(const Problem& p);

void kernel_gradient(const Problem& p, Turn& turn, const float* x, const float* dy, float* dkernel);

// Whether `winograd` computes this faster than oneDNN and `kernel_gradient`.
bool has_winograd(const Problem& p);

// The forward pass of x and the kernel, or the input gradient of dy and the kernel.
void winograd(const Problem& p, Turn& turn, const void* first, const void* kernel, const void* bias, void* result);

}  // namespace cnnjax
