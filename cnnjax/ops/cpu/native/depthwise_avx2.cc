// Depthwise convolution on vectors of AVX2.
#define CNNJAX_LANES 8
#include "depthwise_windows.h"

namespace cnnjax {

const Depthwise kDepthwiseAvx2 = {
    kLanes, {convolve<float>, convolve<uint16_t>}, {kernel_gradient<float>, kernel_gradient<uint16_t>}};

}  // namespace cnnjax
