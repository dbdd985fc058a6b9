// Batch normalization of [rows, channels] in training, by oneDNN: statistics in float32, in two passes.
#include "engine.h"

namespace cnnjax {
namespace {

using dnnl::memory;
using Flags = dnnl::normalization_flags;

struct Norm {
  dnnl::primitive run;
  memory::desc x, vector, scratch;
};

struct NormProblem {
  bool backward;
  memory::data_type type;
  int64_t rows, channels;
  float epsilon;
};

Norm make(const NormProblem& p) {
  Norm made;
  made.x = memory::desc({p.rows, p.channels, 1, 1}, p.type, memory::format_tag::nhwc);
  made.vector = memory::desc({p.channels}, memory::data_type::f32, memory::format_tag::x);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  Flags flags = Flags::use_scale | Flags::use_shift;
  dnnl::batch_normalization_forward::primitive_desc forward(cpu(), dnnl::prop_kind::forward_training, made.x, made.x,
                                                            p.epsilon, flags, attributes);
  if (!p.backward) {
    made.run = dnnl::batch_normalization_forward(forward);
    made.scratch = forward.scratchpad_desc();
    return made;
  }
  dnnl::batch_normalization_backward::primitive_desc backward(cpu(), dnnl::prop_kind::backward, made.x, made.x,
                                                              made.x, p.epsilon, flags, forward, attributes);
  made.run = dnnl::batch_normalization_backward(backward);
  made.scratch = backward.scratchpad_desc();
  return made;
}

// forward: x, scale, bias -> y, mean, var; backward: x, dy, mean, var, scale -> dx, dscale, dbias.
ffi::Error BatchNorm(ffi::RemainingArgs arguments, ffi::RemainingRets results, float epsilon) {
  return guarded([&] {
    bool backward = arguments.size() == 5;
    check((backward || arguments.size() == 3) && results.size() == 3, arguments.size(), " arguments and ",
          results.size(), " results of batch normalization");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0);
    NormProblem p{backward, compute_type("x", x.element_type()), 0, 0, epsilon};
    Dims dims = shape("x", x, 2);
    p.rows = dims[0], p.channels = dims[1];
    std::vector<void*> in, out;
    for (size_t i = 0; i < arguments.size(); ++i) {
      ffi::AnyBuffer buffer = *arguments.get<ffi::AnyBuffer>(i);
      bool large = i == 0 || (backward && i == 1);
      check_type("argument", buffer.element_type(), large ? x.element_type() : ffi::DataType::F32);
      check_shape("argument", shape("argument", buffer, large ? 2 : 1), large ? dims : Dims{p.channels});
      in.push_back(buffer.untyped_data());
    }
    for (size_t i = 0; i < 3; ++i) {
      ffi::AnyBuffer buffer = **results.get<ffi::AnyBuffer>(i);
      check_type("result", buffer.element_type(), i == 0 ? x.element_type() : ffi::DataType::F32);
      check_shape("result", shape("result", buffer, i == 0 ? 2 : 1), i == 0 ? dims : Dims{p.channels});
      out.push_back(buffer.untyped_data());
    }
    Turn turn;
    static auto* cache = new Recent<Norm>(kPrimitives);
    int32_t bits;
    std::memcpy(&bits, &epsilon, sizeof bits);
    std::string key = cache_key({{backward, static_cast<int64_t>(p.type), p.rows, p.channels, bits,
                                  omp_get_max_threads()}});
    Norm& norm = cache->get(key, [&] { return make(p); });
    static auto* stream = new dnnl::stream(cpu());
    auto large = [&](void* data) { return memory(norm.x, cpu(), data); };
    auto vector = [&](void* data) { return memory(norm.vector, cpu(), data); };
    std::unordered_map<int, memory> named = {
        {DNNL_ARG_SRC, large(in[0])},
        {DNNL_ARG_SCRATCHPAD, memory(norm.scratch, cpu(), turn.scratch(norm.scratch.get_size()))}};
    if (backward) {
      named.insert({{DNNL_ARG_DIFF_DST, large(in[1])}, {DNNL_ARG_MEAN, vector(in[2])},
                    {DNNL_ARG_VARIANCE, vector(in[3])}, {DNNL_ARG_SCALE, vector(in[4])},
                    {DNNL_ARG_DIFF_SRC, large(out[0])}, {DNNL_ARG_DIFF_SCALE, vector(out[1])},
                    {DNNL_ARG_DIFF_SHIFT, vector(out[2])}});
    } else {
      named.insert({{DNNL_ARG_SCALE, vector(in[1])}, {DNNL_ARG_SHIFT, vector(in[2])}, {DNNL_ARG_DST, large(out[0])},
                    {DNNL_ARG_MEAN, vector(out[1])}, {DNNL_ARG_VARIANCE, vector(out[2])}});
    }
    norm.run.execute(*stream, named);
    stream->wait();
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxBatchNorm, cnnjax::BatchNorm,
                              xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<float>("epsilon"));
#pragma GCC visibility pop
