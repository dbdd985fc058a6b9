// Which convolutions go by Winograd's method, on which vectors.
#include "winograd.h"

#include <algorithm>

namespace cnnjax {
namespace {

constexpr int64_t kSaved = 4000;           // products saved by a weight, at least
constexpr int64_t kLeastOfPairs = 32, kPixelsOfPairs = 900;  // channels or filters, and pixels, in bfloat16
constexpr int64_t kLeastTiles = 24;        // with weights that are transformed already
constexpr int64_t kMostWeights = 1 << 20;  // of a tap: transformed they take up to 36 times as much memory

// The kernels on the widest vectors that the processor has, or null. Channels and filters have to fill them: narrower
// ones gained nothing beside AVX-512.
const Winograd* kernels(int64_t channels, int64_t filters) {
  for (const Winograd* some : {&kWinogradAvx512, &kWinogradAvx2})
    if (some->lanes == widest_vectors() && channels % some->lanes == 0 && filters % some->lanes == 0) return some;
  return nullptr;
}

// Whether there are instructions for products of bfloat16, and no matrix unit, beside which this would be slow.
bool has_pairs() {
  static const int here = static_cast<int>(dnnl::get_effective_cpu_isa());
  auto has = [](dnnl::cpu_isa set) { return (here & static_cast<int>(set)) == static_cast<int>(set); };
  return has(dnnl::cpu_isa::avx512_core_bf16) && !has(dnnl::cpu_isa::avx512_core_amx);
}

// In bfloat16: 3x3 windows of many pixels.
bool has_pairs_for(const Problem& p) {
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups;
  const Dims& out = p.mode == kInputGradient ? p.x : p.y;
  return p.kernel[0] == 3 && p.kernel[1] == 3 && std::min(channels, filters) >= kLeastOfPairs && channels % 16 == 0 &&
         filters % 16 == 0 && channels * filters <= kMostWeights &&
         out[0] * out[1] * out[2] >= kPixelsOfPairs && has_pairs();
}

}  // namespace

bool has_winograd(const Problem& p) {
  if (p.strides != Dims{1, 1} || p.dilation != Dims{1, 1}) return false;
  if (p.type == dnnl::memory::data_type::bf16) return has_pairs_for(p);
  int64_t channels = p.kernel[2], filters = p.kernel[3] / p.groups, window = p.kernel[0];
  bool fits = (window == 3 || window == 5) && p.kernel[1] == window;
  const Winograd* on = kernels(channels, filters);
  if (!fits || !on) return false;
  // Products have to outweigh the transformation of pixels, and those saved by each weight that of the weights.
  const Dims& out = p.mode == kInputGradient ? p.x : p.y;
  int64_t across = (out[2] + kOut - 1) / kOut, down = (out[1] + kOut - 1) / kOut;
  int64_t products = window == 3 ? 36 * down * across : 40 * out[1] * across;
  int64_t saved = out[0] * (window * window * out[1] * out[2] - products);
  // Of few channels the kernel's gradient would spend its time on transforming both x and dy.
  int64_t least = window == 3 && p.mode == kKernelGradient ? 2 * on->lanes : 16;
  return std::min(channels, filters) >= least && saved >= kSaved && channels * filters <= kMostWeights;
}

template <>
const Packed<float>* packed_winograd(const Layer& l, int64_t window) {
  int64_t c = l.in.channels, k = l.out.channels, across = (l.out.width + kOut - 1) / kOut;
  int64_t tiles = (window == 3 ? (l.out.height + kOut - 1) / kOut : l.out.height) * across;
  const Winograd* on = kernels(c, k);
  bool fits = (window == 3 || window == 5) && on && std::min(c, k) >= 16 && c * k <= kMostWeights;
  if (!fits || l.count * tiles < kLeastTiles) return nullptr;
  return window == 3 ? &on->squares.packed : &on->rows.packed;
}

template <>
const Packed<uint16_t>* packed_winograd(const Layer& l, int64_t window) {
  int64_t c = l.in.channels, k = l.out.channels;
  bool fits = window == 3 && std::min(c, k) >= kLeastOfPairs && c % 16 == 0 && k % 16 == 0 && c * k <= kMostWeights;
  return fits && l.count * l.out.height * l.out.width >= kPixelsOfPairs && has_pairs() ? &kWinogradPairs.packed : nullptr;
}

template <class T>
void run(const Passes<T>& passes, Mode mode, const Layer& layer, Turn& turn, const void* first, const void* second,
         const void* bias, void* result) {
  auto numbers = [](const void* data) { return static_cast<const T*>(data); };
  if (mode == kKernelGradient) {
    passes.kernel_gradient(layer, turn, numbers(first), numbers(second), static_cast<T*>(result));
  } else {
    passes.convolve(layer, turn, numbers(first), numbers(second), numbers(bias), static_cast<T*>(result));
  }
}

void winograd(const Problem& p, Turn& turn, const void* first, const void* second, const void* bias, void* result) {
  int64_t window = p.kernel[0], channels = p.kernel[2], filters = p.kernel[3] / p.groups;
  Images x = {p.x[1], p.x[2], channels, p.x[3]}, y = {p.y[1], p.y[2], filters, p.y[3]};
  Layer layer = {p.x[0], p.groups, x, y, p.padding[0], p.padding[2], channels * p.kernel[3], p.kernel[3], 1, false};
  if (p.mode == kInputGradient)
    layer = {p.x[0], p.groups, y, x, window - 1 - p.padding[0], window - 1 - p.padding[2],
             channels * p.kernel[3], 1, p.kernel[3], true};
  if (p.type == dnnl::memory::data_type::bf16)
    return run(kWinogradPairs, p.mode, layer, turn, first, second, bias, result);
  const Winograd& on = *kernels(channels, filters);
  run(window == 3 ? on.squares : on.rows, p.mode, layer, turn, first, second, bias, result);
}

}  // namespace cnnjax
