// Convolutions of a network in use by Winograd's method, with bias, addition and activation where a tile is stored.
#include "program.h"
#include "winograd.h"

namespace cnnjax {
namespace {

using dnnl::memory;

template <class T>
class WinogradLayer : public FusedLayer {
 public:
  WinogradLayer(const Packed<T>& by, const Layer& layer, const Ends& ends, memory::data_type type)
      : by_(by), layer_(layer), ends_(ends), type_(type), threads_(omp_get_max_threads()) {}

  size_t scratch_bytes() const override { return by_.scratch(layer_, threads_) * sizeof(float); }

  memory::desc weights() const override {
    return memory::desc({by_.weights(layer_)}, memory::data_type::f32, memory::format_tag::a);
  }

  std::shared_ptr<memory> pack(const Step& step) const override {
    dnnl::stream stream(cpu());
    memory::dims all = {step.weight_count};
    memory given({all, memory::data_type::f32, memory::format_tag::a}, cpu(), const_cast<float*>(step.weights));
    memory rounded({all, type_, memory::format_tag::a}, cpu());
    dnnl::reorder(given, rounded).execute(stream, given, rounded);
    stream.wait();
    auto packed = std::make_shared<memory>(weights(), cpu());
    by_.pack(layer_, static_cast<const T*>(rounded.get_data_handle()), static_cast<float*>(packed->get_data_handle()));
    return packed;
  }

  void run(dnnl::stream&, const memory& weights, const Step& step, void* x, void* y, void* scratch) const override {
    Ends ends = ends_;
    ends.bias = step.bias;
    by_.convolve(layer_, static_cast<const float*>(weights.get_data_handle()), static_cast<const T*>(x), ends,
                 static_cast<T*>(y), static_cast<float*>(scratch), threads_);
  }

 private:
  const Packed<T>& by_;
  Layer layer_;
  Ends ends_;
  memory::data_type type_;
  int64_t threads_;
};

template <class T>
std::unique_ptr<FusedLayer> make(const Layer& layer, int64_t window, const Ends& ends, memory::data_type type) {
  const Packed<T>* by = packed_winograd<T>(layer, window);
  return by ? std::make_unique<WinogradLayer<T>>(*by, layer, ends, type) : nullptr;
}

}  // namespace

std::unique_ptr<FusedLayer> winograd_layer(const Step& step, const std::vector<Value>& values, memory::data_type type,
                                           int64_t count) {
  const Value &in = values[step.x], &out = values[step.y];
  const Dims& n = step.numbers;
  if (step.kind != kConvolve || step.act > kClip || out.form != kOwn || step.codes.scales) return nullptr;
  if (n[0] != n[1] || n[2] != 1 || n[3] != 1 || n[8] != 1 || n[9] != 1) return nullptr;
  int64_t groups = n[10], c = in.channels / groups, all = out.channels;
  Layer layer = {count, groups, {in.height, in.width, c, in.channels}, {out.height, out.width, all / groups, all},
                 n[4], n[6], c * all, all, 1, false};
  Ends ends;
  ends.adds = step.other >= 0;
  if (step.act == kRelu) ends.low = 0;
  if (step.act == kClip) ends.low = step.alpha, ends.high = step.beta;
  if (type == memory::data_type::f32) return make<float>(layer, n[0], ends, type);
  return make<uint16_t>(layer, n[0], ends, type);
}

}  // namespace cnnjax
