// Gradients of depthwise convolutions on vectors of AVX-512.
#define CNNJAX_LANES 16
#include "depthwise_windows.h"

namespace cnnjax {

const Depthwise kDepthwiseAvx512 = {
    kLanes, {input_gradient<float>, input_gradient<uint16_t>}, {kernel_gradient<float>, kernel_gradient<uint16_t>}};

}  // namespace cnnjax
