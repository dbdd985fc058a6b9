// Convolutions and dense layers of a network in use, with bias, addition and activation in one primitive of oneDNN.
#include "program.h"

namespace cnnjax {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

dnnl::primitive_attr attributes(const Step& step, const std::vector<Value>& values) {
  using dnnl::algorithm;
  dnnl::post_ops after;
  const bool coded = values[step.y].form == kCoded;
  if (step.other >= 0 && coded) after.append_sum(step.codes.other.scale, 0, step.codes.other.type());
  if (step.other >= 0 && !coded) after.append_sum(1.0f);
  switch (step.act) {
    case kNone: break;
    case kRelu: after.append_eltwise(algorithm::eltwise_relu, 0, 0); break;
    case kClip: after.append_eltwise(algorithm::eltwise_clip, step.alpha, step.beta); break;
    case kSwish: after.append_eltwise(algorithm::eltwise_swish, 1, 0); break;
    case kGelu: after.append_eltwise(algorithm::eltwise_gelu_erf, 0, 0); break;
    case kGeluTanh: after.append_eltwise(algorithm::eltwise_gelu_tanh, 0, 0); break;
    case kHardSwish: after.append_eltwise(algorithm::eltwise_hardswish, 1.0f / 6, 0.5f); break;
    case kLogistic: after.append_eltwise(algorithm::eltwise_logistic, 0, 0); break;
    case kHardSigmoid: after.append_eltwise(algorithm::eltwise_hardsigmoid, 1.0f / 6, 0.5f); break;
    case kTanh: after.append_eltwise(algorithm::eltwise_tanh, 0, 0); break;
  }
  dnnl::primitive_attr attr;
  attr.set_post_ops(after);
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const bool grouped = step.kind == kConvolve && step.numbers[10] > 1;
  if (step.codes.scales) attr.set_scales_mask(DNNL_ARG_WEIGHTS, grouped ? 3 : 1);
  if (coded) attr.set_scales_mask(DNNL_ARG_DST, 0);
  return attr;
}

memory::data_type type_of(const Value& value, const Coding& as, memory::data_type own) {
  return value.form == kCoded ? as.type() : value.form == kWide ? memory::data_type::f32 : own;
}

memory::desc images(const Value& value, memory::data_type type, int64_t count) {
  return {{count, value.channels, value.height, value.width}, type, Tag::nhwc};
}

class OneDnnLayer : public FusedLayer {
 public:
  OneDnnLayer(const Step& step, const std::vector<Value>& values, memory::data_type type, int64_t count);
  bool is_slow() const override { return name_.rfind("ref", 0) == 0; }
  size_t scratch_bytes() const override { return scratch_.get_size(); }
  memory::desc weights() const override { return weights_; }
  std::shared_ptr<memory> pack(const Step& step) const override;
  void run(dnnl::stream& stream, const memory& weights, const Step& step, void* x, void* y,
           void* scratch) const override;

 private:
  dnnl::primitive primitive_;
  memory::desc x_, y_, weights_, callers_, scratch_;
  std::string name_;
};

OneDnnLayer::OneDnnLayer(const Step& step, const std::vector<Value>& values, memory::data_type type, int64_t count) {
  const Value &in = values[step.x], &out = values[step.y];
  const auto kind = dnnl::prop_kind::forward_inference;
  const memory::data_type of_x = type_of(in, step.codes.x, type), of_y = type_of(out, step.codes.y, type);
  const memory::data_type of_weights = step.codes.scales ? memory::data_type::s8 : type;
  dnnl::primitive_attr attr = attributes(step, values);
  auto keep = [&](const auto& desc, dnnl::primitive primitive) {
    primitive_ = std::move(primitive);
    weights_ = desc.weights_desc(), scratch_ = desc.scratchpad_desc(), name_ = desc.impl_info_str();
  };
  memory::desc bias;
  if (step.bias) bias = memory::desc({out.channels}, memory::data_type::f32, Tag::x);
  if (step.kind == kDense && out.height * out.width == 1) {  // of all pixels of an image
    int64_t c = in.size(), k = out.channels;
    x_ = memory::desc({count, c}, of_x, Tag::nc);
    y_ = memory::desc({count, k}, of_y, Tag::nc);
    callers_ = memory::desc({k, c}, memory::data_type::f32, memory::dims{1, k});
    memory::desc any({k, c}, of_weights, Tag::any);
    dnnl::inner_product_forward::primitive_desc desc(cpu(), kind, x_, any, bias, y_, attr);
    keep(desc, dnnl::inner_product_forward(desc));
    return;
  }
  static const Dims plain = {1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};
  const Dims& n = step.kind == kDense ? plain : step.numbers;
  int64_t g = n[10], c = in.channels / g, k = out.channels / g, all = out.channels;
  x_ = images(in, of_x, count), y_ = images(out, of_y, count);
  memory::dims shape = {k, c, n[0], n[1]}, strides = {1, all, n[1] * c * all, c * all};
  if (g > 1) shape.insert(shape.begin(), g), strides.insert(strides.begin(), k);
  callers_ = memory::desc(shape, memory::data_type::f32, strides);
  dnnl::convolution_forward::primitive_desc desc(
      cpu(), kind, dnnl::algorithm::convolution_direct, x_, memory::desc(shape, of_weights, Tag::any), bias, y_,
      memory::dims{n[2], n[3]}, memory::dims{n[8] - 1, n[9] - 1}, memory::dims{n[4], n[6]}, memory::dims{n[5], n[7]},
      attr);
  keep(desc, dnnl::convolution_forward(desc));
}

std::shared_ptr<memory> OneDnnLayer::pack(const Step& step) const {
  auto packed = std::make_shared<memory>(weights_, cpu());
  memory callers(callers_, cpu(), const_cast<float*>(step.weights));
  dnnl::stream stream(cpu());
  dnnl::reorder(callers, *packed).execute(stream, callers, *packed);
  stream.wait();
  return packed;
}

void OneDnnLayer::run(dnnl::stream& stream, const memory& weights, const Step& step, void* x, void* y,
                      void* scratch) const {
  auto vector = [](int64_t count, const float* numbers) {
    return memory({{count}, memory::data_type::f32, Tag::x}, cpu(), const_cast<float*>(numbers));
  };
  std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, memory(x_, cpu(), x)},
                                               {DNNL_ARG_WEIGHTS, weights},
                                               {DNNL_ARG_DST, memory(y_, cpu(), y)},
                                               {DNNL_ARG_SCRATCHPAD, memory(scratch_, cpu(), scratch)}};
  if (step.bias) arguments.insert({DNNL_ARG_BIAS, vector(step.bias_count, step.bias)});
  if (step.codes.scales) arguments.insert({DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, vector(step.codes.scale_count, step.codes.scales)});
  if (y_.get_data_type() != memory::data_type::f32 && y_.get_data_type() != memory::data_type::bf16)
    arguments.insert({DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST, vector(1, &step.codes.y.scale)});
  primitive_.execute(stream, arguments);
}

}  // namespace

std::unique_ptr<FusedLayer> make_layer(const Step& step, const std::vector<Value>& values, memory::data_type type,
                                       int64_t count) {
  if (step.kind == kDense) {
    auto layer = std::make_unique<OneDnnLayer>(step, values, type, count);  // throws where other counts have none
    auto own = vector_layer(step, values, type, count);
    if (own && !layer->is_slow()) return own;
    return layer;
  }
  if (auto layer = winograd_layer(step, values, type, count)) return layer;
  return std::make_unique<OneDnnLayer>(step, values, type, count);
}

}  // namespace cnnjax
