// Winograd's method on vectors of AVX-512.
#define CNNJAX_LANES 16
#include "winograd_rows.h"
#include "winograd_squares.h"

namespace cnnjax {

const Winograd kWinogradAvx512 = {
    kLanes,
    {convolve<Convolution<squares::Method>>, squares::kernel_gradient, packed<Convolution<squares::Method>>()},
    {convolve<rows::Convolution>, rows::kernel_gradient, packed<rows::Convolution>()}};

}  // namespace cnnjax
