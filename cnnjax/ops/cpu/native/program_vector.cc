// Dense layers of a single vector in a network in use: all the time goes into reading the weights, so that each thread
// reads its own ones from beginning to end; few weights are one thread's.
#include <algorithm>

#include "exponential.h"
#include "program.h"

namespace cnnjax {
namespace {

using dnnl::memory;

constexpr int64_t kMost = 64;         // outputs of a block of weights
constexpr int64_t kShared = 1 << 16;  // weights that are worth another thread
constexpr int64_t kAtOnce = 4;        // inputs

// sums [kWidth] of x [C] times a block [C, kWidth].
template <int64_t kWidth, class T>
CNNJAX_INLINE void block_body(const T* x, const T* weights, int64_t count, float* sums) {
  for (int64_t k = 0; k < kWidth; ++k) sums[k] = 0;
  int64_t c = 0;
  for (; c + kAtOnce <= count; c += kAtOnce, weights += kAtOnce * kWidth) {
    const float x0 = widen(x[c]), x1 = widen(x[c + 1]), x2 = widen(x[c + 2]), x3 = widen(x[c + 3]);
#pragma omp simd
    for (int64_t k = 0; k < kWidth; ++k)
      sums[k] += x0 * widen(weights[k]) + x1 * widen(weights[k + kWidth]) + x2 * widen(weights[k + 2 * kWidth]) +
                 x3 * widen(weights[k + 3 * kWidth]);
  }
  for (; c < count; ++c, weights += kWidth)
#pragma omp simd
    for (int64_t k = 0; k < kWidth; ++k) sums[k] += widen(x[c]) * widen(weights[k]);
}

#define CNNJAX_BLOCK(T)                                                                                   \
  CNNJAX_VECTORIZED void block(const T* x, const T* weights, int64_t count, int64_t width, float* sums) { \
    if (width == kMost) return block_body<kMost>(x, weights, count, sums);                                \
    block_body<16>(x, weights, count, sums);                                                              \
  }
CNNJAX_BLOCK(float)
CNNJAX_BLOCK(BFloat16)

CNNJAX_VECTORIZED void sigmoid(const float* x, int64_t count, bool times, float* y) {
  for (int64_t k = 0; k < count; ++k) y[k] = sigmoid_of(x[k]) * (times ? x[k] : 1);
}

template <class T>
class VectorLayer : public FusedLayer {
 public:
  VectorLayer(const Step& step, int64_t inputs, int64_t outputs, bool wide)
      : inputs_(inputs), outputs_(outputs), width_(outputs > 16 ? kMost : 16), wide_(wide),
        threads_(inputs * outputs < kShared ? 1 : omp_get_max_threads()) {}

  size_t scratch_bytes() const override { return 0; }

  memory::desc weights() const override {
    return memory::desc({blocks() * inputs_ * width_ * static_cast<int64_t>(sizeof(T))}, memory::data_type::u8,
                        memory::format_tag::a);
  }

  std::shared_ptr<memory> pack(const Step& step) const override {
    auto packed = std::make_shared<memory>(weights(), cpu());
    T* to = static_cast<T*>(packed->get_data_handle());
    for (int64_t block = 0; block < blocks(); ++block)
      for (int64_t c = 0; c < inputs_; ++c)
        for (int64_t k = block * width_; k < (block + 1) * width_; ++k)
          narrow(k < outputs_ ? step.weights[c * outputs_ + k] : 0.0f, *to++);
    return packed;
  }

  void run(dnnl::stream&, const memory& weights, const Step& step, void* x, void* y, void*) const override {
    const T* blocks_of = static_cast<const T*>(weights.get_data_handle());
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
    for (int64_t b = 0; b < blocks(); ++b) {
      float sums[kMost];
      const int64_t first = b * width_, count = std::min(width_, outputs_ - first);
      block(static_cast<const T*>(x), blocks_of + first * inputs_, inputs_, width_, sums);
      for (int64_t k = 0; step.bias && k < count; ++k) sums[k] += step.bias[first + k];
      if (step.act == kLogistic || step.act == kSwish) sigmoid(sums, count, step.act == kSwish, sums);
      else for (int64_t k = 0; k < count; ++k) sums[k] = activated(step, sums[k]);
      if (wide_) std::copy_n(sums, count, static_cast<float*>(y) + first);
      else for (int64_t k = 0; k < count; ++k) narrow(sums[k], static_cast<T*>(y)[first + k]);
    }
  }

 private:
  int64_t blocks() const { return (outputs_ + width_ - 1) / width_; }

  int64_t inputs_, outputs_, width_;
  bool wide_;
  int threads_;
};

}  // namespace

std::unique_ptr<FusedLayer> vector_layer(const Step& step, const std::vector<Value>& values, memory::data_type type,
                                         int64_t count) {
  const Value &in = values[step.x], &out = values[step.y];
  if (count != 1 || step.kind != kDense || out.height * out.width != 1 || step.other >= 0 || step.codes.scales) return nullptr;
  if (type == memory::data_type::f32)
    return std::make_unique<VectorLayer<float>>(step, in.size(), out.channels, out.form == kWide);
  return std::make_unique<VectorLayer<BFloat16>>(step, in.size(), out.channels, out.form == kWide);
}

}  // namespace cnnjax
