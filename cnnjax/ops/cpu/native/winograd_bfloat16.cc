// Winograd's method on vectors of AVX-512 with products of bfloat16.
#define CNNJAX_LANES 16
#define CNNJAX_PAIRS
#include "winograd_pairs.h"

namespace cnnjax {

const Passes<uint16_t> kWinogradPairs = {convolve<Convolution<pairs::Method>>, pairs::kernel_gradient,
                                        packed<Convolution<pairs::Method>>()};

}  // namespace cnnjax
