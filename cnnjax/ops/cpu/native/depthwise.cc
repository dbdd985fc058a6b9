// Which depthwise convolutions are computed here, on which vectors.
#include "depthwise.h"

namespace cnnjax {
namespace {

const Depthwise* passes(int64_t channels) {
  for (const Depthwise* some : {&kDepthwiseAvx512, &kDepthwiseAvx2})
    if (some->lanes == widest_vectors() && channels % some->lanes == 0) return some;
  return nullptr;
}

}  // namespace

bool has_depthwise(const Problem& p) {
  int64_t width = p.kernel[1];
  return p.groups == p.x[3] && p.kernel[2] == 1 && p.kernel[3] == p.groups && p.dilation == Dims{1, 1} &&
         (p.strides == Dims{1, 1} || p.strides == Dims{2, 2}) && (width == 3 || width == 5 || width == 7) &&
         p.kernel[0] * width <= kMostTaps && p.x[2] <= 4096 && p.padding[0] < p.kernel[0] &&
         p.padding[2] < p.kernel[1] && passes(p.x[3]);
}

void depthwise(const Problem& p, Turn& turn, const void* first, const void* second, const void* bias, void* result) {
  const Depthwise& on = *passes(p.x[3]);
  int type = p.type == dnnl::memory::data_type::bf16;
  if (p.mode == kKernelGradient) return on.kernel_gradient[type](p, turn, first, second, result);
  on.convolve[type](p, turn, first, second, bias, result);
}

}  // namespace cnnjax
