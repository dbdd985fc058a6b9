// Which gradients of depthwise convolutions are computed here, on which vectors.
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
  // Elsewhere oneDNN is faster: forward, and for windows of three by three. In bfloat16 it has only its reference loop
  // for the input gradient of stride 2.
  int64_t width = p.kernel[1];
  bool bfloat16 = p.type == dnnl::memory::data_type::bf16;
  bool pays = p.mode == kInputGradient ? bfloat16 && p.strides[0] == 2 : p.mode == kKernelGradient && width > 3;
  return pays && p.groups == p.x[3] && p.kernel[2] == 1 && p.kernel[3] == p.groups && p.dilation == Dims{1, 1} &&
         (p.strides == Dims{1, 1} || p.strides == Dims{2, 2}) && (width == 3 || width == 5 || width == 7) &&
         p.kernel[0] * width <= kMostTaps && p.x[2] <= 4096 && p.padding[0] < p.kernel[0] &&
         p.padding[2] < p.kernel[1] && passes(p.x[3]);
}

void depthwise(const Problem& p, Turn& turn, const void* first, const void* second, void* result) {
  const Depthwise& on = *passes(p.x[3]);
  int type = p.type == dnnl::memory::data_type::bf16;
  if (p.mode == kKernelGradient) return on.kernel_gradient[type](p, turn, first, second, result);
  on.input_gradient[type](p, turn, first, second, result);
}

}  // namespace cnnjax
