// Convolution, its input gradient and its kernel gradient (arrays NHWC, kernels HWIO), by oneDNN.
#include "convolution.h"

#include "depthwise.h"

namespace cnnjax {
namespace {

using dnnl::memory;
using Span = ffi::Span<const int64_t>;

struct Primitive {
  dnnl::primitive run, reorder;  // reorder is empty where the caller's layout is taken as it is
  memory::desc x, y, bias, kernel, callers_kernel, scratch;
  std::string implementation;
};

void check_problem(const Problem& p) {
  check(p.strides.size() == 2 && p.dilation.size() == 2 && p.padding.size() == 4, "strides ", show(p.strides),
        ", dilation ", show(p.dilation), ", padding ", show(p.padding), ": must have 2, 2 and 4 numbers");
  check(p.groups > 0 && p.x[3] % p.groups == 0 && p.kernel[3] % p.groups == 0, "groups ", p.groups,
        ": must divide ", p.x[3], " channels and ", p.kernel[3], " filters");
  check(p.kernel[2] * p.groups == p.x[3], "kernel ", show(p.kernel), " with groups ", p.groups, " does not fit ",
        p.x[3], " channels");
  check(p.y[0] == p.x[0] && p.y[3] == p.kernel[3], "y ", show(p.y), " does not fit x ", show(p.x),
        " and kernel ", show(p.kernel));
  for (int axis = 0; axis < 2; ++axis) {
    int64_t stride = p.strides[axis], dilation = p.dilation[axis];
    int64_t before = p.padding[2 * axis], after = p.padding[2 * axis + 1];
    check(stride > 0 && dilation > 0 && before >= 0 && after >= 0 && stride < kLargestAxis &&
              dilation < kLargestAxis && before < kLargestAxis && after < kLargestAxis,
          "stride ", stride, ", dilation ", dilation, ", padding ", before, " and ", after, " are out of range");
    int64_t room = p.x[1 + axis] + before + after - (p.kernel[axis] - 1) * dilation - 1;
    check(room >= 0 && room / stride + 1 == p.y[1 + axis], "y ", show(p.y), " of x ", show(p.x), ", kernel ",
          show(p.kernel), ", stride ", stride, ", dilation ", dilation, ", padding ", before, " and ", after,
          ": axis ", 1 + axis, " does not fit");
  }
}

memory::desc image(const Dims& nhwc, memory::data_type type) {
  return {{nhwc[0], nhwc[3], nhwc[1], nhwc[2]}, type, memory::format_tag::nhwc};
}

memory::dims kernel_dims(const Problem& p) {
  const Dims& k = p.kernel;
  if (p.groups == 1) return {k[3], k[2], k[0], k[1]};
  return {p.groups, k[3] / p.groups, k[2], k[0], k[1]};
}

memory::desc callers_kernel(const Problem& p) {
  const Dims& k = p.kernel;
  memory::dims strides = {1, k[3], k[1] * k[2] * k[3], k[2] * k[3]};
  if (p.groups > 1) strides.insert(strides.begin(), k[3] / p.groups);
  return {kernel_dims(p), p.type, strides};
}

// Waking the other threads takes longer than to reorder a small kernel.
struct Single {
  explicit Single(const memory::desc& kernel) : small(kernel.get_size() < 65536), before(omp_get_max_threads()) {
    if (small) omp_set_num_threads(1);
  }
  ~Single() {
    if (small) omp_set_num_threads(before);
  }
  bool small;
  int before;
};

Primitive make(const Problem& p) {
  memory::desc x = image(p.x, p.type), y = image(p.y, p.type);
  memory::desc kernel(kernel_dims(p), p.type, memory::format_tag::any);
  memory::desc bias = p.bias ? memory::desc({p.kernel[3]}, p.type, memory::format_tag::x) : memory::desc();
  memory::dims before = {p.padding[0], p.padding[2]}, after = {p.padding[1], p.padding[3]};
  memory::dims dilation = {p.dilation[0] - 1, p.dilation[1] - 1};  // oneDNN counts the gaps
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::convolution_forward::primitive_desc forward(
      cpu(), dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, x, kernel,
      bias, y, p.strides, dilation, before, after, attributes);
  Primitive made;
  auto keep = [&](const auto& desc, const auto& primitive, memory::desc chosen) {
    made.run = primitive;
    made.kernel = chosen;
    made.scratch = desc.scratchpad_desc();
    made.implementation = desc.impl_info_str();
  };
  if (p.mode == kForward) {
    keep(forward, dnnl::convolution_forward(forward), forward.weights_desc());
  } else if (p.mode == kInputGradient) {
    dnnl::convolution_backward_data::primitive_desc backward(cpu(), dnnl::algorithm::convolution_direct, x, kernel,
                                                             y, p.strides, dilation, before, after, forward,
                                                             attributes);
    keep(backward, dnnl::convolution_backward_data(backward), backward.weights_desc());
  } else {
    dnnl::convolution_backward_weights::primitive_desc backward(cpu(), dnnl::algorithm::convolution_direct, x,
                                                                kernel, y, p.strides, dilation, before, after,
                                                                forward, attributes);
    keep(backward, dnnl::convolution_backward_weights(backward), backward.diff_weights_desc());
  }
  made.x = x, made.y = y, made.bias = bias, made.callers_kernel = callers_kernel(p);
  if (made.kernel != made.callers_kernel) {
    bool out = p.mode == kKernelGradient;
    Single single(made.kernel);
    dnnl::reorder::primitive_desc reorder(cpu(), out ? made.kernel : made.callers_kernel, cpu(),
                                          out ? made.callers_kernel : made.kernel);
    made.reorder = dnnl::reorder(reorder);
  }
  return made;
}

Recent<Primitive>& primitives() {
  static auto* cache = new Recent<Primitive>(kPrimitives);
  return *cache;
}

void run(Primitive& p, Mode mode, Turn& turn, void* x, void* kernel, void* y, void* bias) {
  static auto* stream = new dnnl::stream(cpu());
  size_t kernel_bytes = p.reorder ? (p.kernel.get_size() + 4095) / 4096 * 4096 : 0;
  char* scratch = turn.scratch(kernel_bytes + p.scratch.get_size());
  memory callers(p.callers_kernel, cpu(), kernel);
  memory blocked = p.reorder ? memory(p.kernel, cpu(), scratch) : callers;
  memory xs(p.x, cpu(), x), ys(p.y, cpu(), y), work(p.scratch, cpu(), scratch + kernel_bytes);
  std::unordered_map<int, memory> arguments = {{DNNL_ARG_SCRATCHPAD, work}};
  if (mode == kForward) {
    arguments.insert({{DNNL_ARG_SRC, xs}, {DNNL_ARG_WEIGHTS, blocked}, {DNNL_ARG_DST, ys}});
    if (bias) arguments.insert({DNNL_ARG_BIAS, memory(p.bias, cpu(), bias)});
  } else if (mode == kInputGradient) {
    arguments.insert({{DNNL_ARG_DIFF_DST, ys}, {DNNL_ARG_WEIGHTS, blocked}, {DNNL_ARG_DIFF_SRC, xs}});
  } else {
    arguments.insert({{DNNL_ARG_SRC, xs}, {DNNL_ARG_DIFF_DST, ys}, {DNNL_ARG_DIFF_WEIGHTS, blocked}});
  }
  if (p.reorder && mode != kKernelGradient) {
    Single single(p.kernel);
    p.reorder.execute(*stream, {{DNNL_ARG_FROM, callers}, {DNNL_ARG_TO, blocked}});
  }
  p.run.execute(*stream, arguments);
  if (p.reorder && mode == kKernelGradient) {
    Single single(p.kernel);
    p.reorder.execute(*stream, {{DNNL_ARG_FROM, blocked}, {DNNL_ARG_TO, callers}});
  }
  stream->wait();
}

// forward: x, kernel (, bias) -> y; input gradient: dy, kernel -> dx; kernel gradient: x, dy -> dkernel.
ffi::Error Convolution(ffi::RemainingArgs arguments, ffi::RemainingRets results, int64_t mode, Span strides,
                       Span padding, Span dilation, int64_t groups) {
  return guarded([&] {
    check(mode >= kForward && mode <= kKernelGradient, "mode ", mode, ": must be 0, 1 or 2");
    size_t most = mode == kForward ? 3 : 2;
    check(arguments.size() >= 2 && arguments.size() <= most && results.size() == 1, "mode ", mode, " of ",
          arguments.size(), " arguments and ", results.size(), " results");
    ffi::AnyBuffer first = *arguments.get<ffi::AnyBuffer>(0), second = *arguments.get<ffi::AnyBuffer>(1);
    ffi::AnyBuffer result = **results.get<ffi::AnyBuffer>(0);
    ffi::AnyBuffer& x = mode == kInputGradient ? result : first;
    ffi::AnyBuffer& kernel = mode == kKernelGradient ? result : second;
    ffi::AnyBuffer& y = mode == kForward ? result : mode == kInputGradient ? first : second;
    Problem problem{static_cast<Mode>(mode), compute_type("x", x.element_type()), shape("x", x, 4),
                    shape("kernel", kernel, 4), shape("y", y, 4), Dims(strides.begin(), strides.end()),
                    Dims(padding.begin(), padding.end()), Dims(dilation.begin(), dilation.end()), groups, 0, false};
    check_type("kernel", kernel.element_type(), x.element_type());
    check_type("y", y.element_type(), x.element_type());
    check_problem(problem);
    void* bias = nullptr;
    if (arguments.size() == 3) {
      ffi::AnyBuffer vector = *arguments.get<ffi::AnyBuffer>(2);
      check_type("bias", vector.element_type(), x.element_type());
      check_shape("bias", shape("bias", vector, 1), {problem.kernel[3]});
      problem.bias = true;
      bias = vector.untyped_data();
    }
    Turn turn;
    auto floats = [](void* data) { return static_cast<float*>(data); };
    if (has_winograd(problem)) {
      return winograd(problem, turn, first.untyped_data(), second.untyped_data(), bias, result.untyped_data());
    }
    if (has_kernel_gradient(problem)) {
      return kernel_gradient(problem, turn, floats(x.untyped_data()), floats(y.untyped_data()),
                             floats(kernel.untyped_data()));
    }
    if (has_depthwise(problem)) {
      return depthwise(problem, turn, first.untyped_data(), second.untyped_data(), result.untyped_data());
    }
    problem.threads = omp_get_max_threads();
    Primitive& primitive = primitives().get(problem.key(), [&] { return make(problem); });
    run(primitive, problem.mode, turn, x.untyped_data(), kernel.untyped_data(), y.untyped_data(), bias);
  });
}

}  // namespace
}  // namespace cnnjax

// Whether a convolution is worth a call in this dtype on this processor: there is code for it here, or oneDNN
// generates some and has not only its slow reference loop, or nothing. Numbers: mode, bfloat16, groups, bias, then
// x, kernel, y (4 each), strides (2), padding (4), dilation (2).
extern "C" __attribute__((visibility("default"))) int cnnjax_convolution_is_fast(const int64_t* numbers) {
  using namespace cnnjax;
  auto take = [&](int begin, int count) { return Dims(numbers + begin, numbers + begin + count); };
  Problem problem{static_cast<Mode>(numbers[0]),
                  numbers[1] ? memory::data_type::bf16 : memory::data_type::f32,
                  take(4, 4), take(8, 4), take(12, 4), take(16, 2), take(18, 4), take(22, 2),
                  numbers[2], 0, numbers[3] != 0};
  int fast = 0;
  guarded([&] {
    check_problem(problem);
    Turn turn;
    if (has_winograd(problem) || has_kernel_gradient(problem) || has_depthwise(problem)) {
      fast = 1;
      return;
    }
    problem.threads = omp_get_max_threads();
    Primitive& primitive = primitives().get(problem.key(), [&] { return make(problem); });
    fast = primitive.implementation.rfind("ref", 0) != 0;
    // A Xeon with FP16 whose AMX the virtual machine hid needed 1.2 to 1.7 times as long in bfloat16 as in float32,
    // which pays for the conversions where there is more to multiply than one pixel or one channel.
    bool half_speed = __builtin_cpu_is("intel") && dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_fp16;
    bool depthwise = problem.groups > 1 && problem.kernel[2] == 1;
    bool large = problem.kernel[0] * problem.kernel[1] > 1 && !depthwise;
    if (problem.type == memory::data_type::bf16 && half_speed && large) fast = 0;
  });
  return fast;
}

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxConvolution, cnnjax::Convolution,
                              xla::ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("mode")
                                  .Attr<xla::ffi::Span<const int64_t>>("strides")
                                  .Attr<xla::ffi::Span<const int64_t>>("padding")
                                  .Attr<xla::ffi::Span<const int64_t>>("dilation")
                                  .Attr<int64_t>("groups"));
#pragma GCC visibility pop
