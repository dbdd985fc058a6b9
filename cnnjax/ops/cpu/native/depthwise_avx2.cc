// Gradients of depthwise convolutions on vectors of AVX2.
#define CNNJAX_LANES 8
#include "depthwise_windows.h"

namespace cnnjax {

const Depthwise kDepthwiseAvx2 = {
    kLanes, {input_gradient<float>, input_gradient<uint16_t>}, {kernel_gradient<float>, kernel_gradient<uint16_t>}};

}  // namespace cnnjax
