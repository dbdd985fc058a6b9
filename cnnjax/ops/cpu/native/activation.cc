// GELU and SiLU of arrays of any shape, and their gradients, in one pass.
#include <algorithm>

#include "engine.h"
#include "exponential.h"

namespace cnnjax {
namespace {

constexpr int64_t kBlock = 1 << 14;  // numbers that a thread takes at a time

template <class Act, class T>
CNNJAX_INLINE void forward_of(const T* __restrict x, int64_t count, T* __restrict y) {
  for (int64_t i = 0; i < count; ++i) narrow(Act::value(widen(x[i])), y[i]);
}

template <class Act, class T>
CNNJAX_INLINE void backward_of(const T* __restrict x, const T* __restrict dy, int64_t count, T* __restrict dx) {
  for (int64_t i = 0; i < count; ++i) narrow(Act::slope(widen(x[i])) * widen(dy[i]), dx[i]);
}

// Compiled for each activation, type and generation of processors.
#define CNNJAX_FOR(Act, T)                                                                           \
  CNNJAX_VECTORIZED void forward(Act, const T* x, int64_t count, T* y) { forward_of<Act>(x, count, y); } \
  CNNJAX_VECTORIZED void backward(Act, const T* x, const T* dy, int64_t count, T* dx) {              \
    backward_of<Act>(x, dy, count, dx);                                                              \
  }
CNNJAX_FOR(Gelu, float)
CNNJAX_FOR(Gelu, BFloat16)
CNNJAX_FOR(Silu, float)
CNNJAX_FOR(Silu, BFloat16)

template <class Act, class T>
void run(const void* x_, const void* dy_, int64_t count, void* result) {
  auto x = static_cast<const T*>(x_), dy = static_cast<const T*>(dy_);
  T* to = static_cast<T*>(result);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; i += kBlock) {
    int64_t here = std::min(kBlock, count - i);
    if (dy) {
      backward(Act(), x + i, dy + i, here, to + i);
    } else {
      forward(Act(), x + i, here, to + i);
    }
  }
}

// forward: x -> y; backward: x, dy -> dx. `silu` instead of GELU.
ffi::Error Activation(ffi::RemainingArgs arguments, ffi::RemainingRets results, bool silu) {
  return guarded([&] {
    check((arguments.size() == 1 || arguments.size() == 2) && results.size() == 1, arguments.size(),
          " arguments and ", results.size(), " results of an activation");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0), result = **results.get<ffi::AnyBuffer>(0);
    bool wide = compute_type("x", x.element_type()) == dnnl::memory::data_type::f32;
    Dims dims = shape("x", x);
    int64_t count = 1;
    for (int64_t size : dims) count *= size;
    const void* dy = nullptr;
    if (arguments.size() == 2) {
      ffi::AnyBuffer grad = *arguments.get<ffi::AnyBuffer>(1);
      check_type("dy", grad.element_type(), x.element_type());
      check_shape("dy", shape("dy", grad), dims);
      dy = grad.untyped_data();
    }
    check_type("result", result.element_type(), x.element_type());
    check_shape("result", shape("result", result), dims);
    Turn turn;
    auto on = silu ? (wide ? run<Silu, float> : run<Silu, BFloat16>) : (wide ? run<Gelu, float> : run<Gelu, BFloat16>);
    on(x.untyped_data(), dy, count, result.untyped_data());
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxActivation, cnnjax::Activation,
                              xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<bool>("silu"));
#pragma GCC visibility pop
