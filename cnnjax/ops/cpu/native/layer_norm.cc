// Normalization of each row of [..., channels] (LayerNorm) and its gradient, one pass over memory each: a row's
// statistics are computed again from x, which is in the first-level cache then.
#include <algorithm>
#include <cmath>

#include "engine.h"
#include "loops.h"

namespace cnnjax {
namespace {

constexpr int64_t kBlockNumbers = 1 << 15;  // of x that a thread takes at a time
constexpr int64_t kMostBlocks = 512;        // that have sums of their own

struct Moments {
  float mean, inverse;
};

template <class T>
CNNJAX_INLINE Moments moments_of(const T* x, int64_t channels, float epsilon) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) sum += widen(x[c]);
  float mean = sum / static_cast<float>(channels);
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < channels; ++c) squares += (widen(x[c]) - mean) * (widen(x[c]) - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<float>(channels) + epsilon)};
}

template <class T>
CNNJAX_INLINE void forward_of(const T* x, int64_t rows, int64_t channels, const float* scale, const float* bias,
                              float epsilon, T* __restrict y) {
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels) {
    Moments m = moments_of(x, channels, epsilon);
    for (int64_t c = 0; c < channels; ++c) narrow((widen(x[c]) - m.mean) * (m.inverse * scale[c]) + bias[c], y[c]);
  }
}

template <class T>
CNNJAX_INLINE void backward_of(const T* x, const T* dy, int64_t rows, int64_t channels, const float* scale,
                               float epsilon, T* __restrict dx, float* __restrict dscale, float* __restrict dbias) {
  std::fill(dscale, dscale + channels, 0.0f);
  std::fill(dbias, dbias + channels, 0.0f);
  for (int64_t r = 0; r < rows; ++r, x += channels, dy += channels, dx += channels) {
    Moments m = moments_of(x, channels, epsilon);
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t c = 0; c < channels; ++c) {
      float normal = (widen(x[c]) - m.mean) * m.inverse, all = widen(dy[c]), grad = all * scale[c];
      sum += grad;
      along += grad * normal;
      dscale[c] += all * normal;
      dbias[c] += all;
    }
    sum /= static_cast<float>(channels), along /= static_cast<float>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      float normal = (widen(x[c]) - m.mean) * m.inverse;
      narrow(m.inverse * (widen(dy[c]) * scale[c] - sum - normal * along), dx[c]);
    }
  }
}

// Compiled for each type and each generation of processors.
#define CNNJAX_FOR(T)                                                                                            \
  CNNJAX_VECTORIZED void forward(const T* x, int64_t rows, int64_t channels, const float* scale,                 \
                                 const float* bias, float epsilon, T* y) {                                       \
    forward_of(x, rows, channels, scale, bias, epsilon, y);                                                      \
  }                                                                                                              \
  CNNJAX_VECTORIZED void backward(const T* x, const T* dy, int64_t rows, int64_t channels, const float* scale,   \
                                  float epsilon, T* dx, float* dscale, float* dbias) {                           \
    backward_of(x, dy, rows, channels, scale, epsilon, dx, dscale, dbias);                                       \
  }
CNNJAX_FOR(float)
CNNJAX_FOR(BFloat16)

template <class T>
void run(const std::vector<void*>& in, const std::vector<void*>& out, int64_t rows, int64_t channels,
         float epsilon) {
  auto large = [](void* data) { return static_cast<T*>(data); };
  auto vector = [](void* data) { return static_cast<float*>(data); };
  bool back = out.size() == 3;
  int64_t block = std::max<int64_t>({1, kBlockNumbers / channels, rows / kMostBlocks});
  int64_t blocks = (rows + block - 1) / block;
  std::vector<float> dscale(back ? blocks * channels : 0), dbias(dscale.size());
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t at = b * block * channels, count = std::min(block, rows - b * block);
    if (back) {
      backward(large(in[0]) + at, large(in[1]) + at, count, channels, vector(in[2]), epsilon, large(out[0]) + at,
               &dscale[b * channels], &dbias[b * channels]);
    } else {
      forward(large(in[0]) + at, count, channels, vector(in[1]), vector(in[2]), epsilon, large(out[0]) + at);
    }
  }
  if (!back) return;
  std::vector<double> sums(2 * channels);
  for (int64_t i = 0; i < blocks * channels; ++i) {
    sums[i % channels] += dscale[i];
    sums[channels + i % channels] += dbias[i];
  }
  for (int64_t c = 0; c < channels; ++c) {
    vector(out[1])[c] = static_cast<float>(sums[c]);
    vector(out[2])[c] = static_cast<float>(sums[channels + c]);
  }
}

// forward: x, scale, bias -> y; backward: x, dy, scale -> dx, dscale, dbias.
ffi::Error LayerNorm(ffi::RemainingArgs arguments, ffi::RemainingRets results, float epsilon) {
  return guarded([&] {
    check(arguments.size() == 3 && (results.size() == 1 || results.size() == 3), arguments.size(), " arguments and ",
          results.size(), " results of layer normalization");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0);
    bool wide = compute_type("x", x.element_type()) == dnnl::memory::data_type::f32;
    Dims dims = shape("x", x);
    int64_t channels = dims.back(), rows = 1;
    for (size_t axis = 0; axis + 1 < dims.size(); ++axis) rows *= dims[axis];
    std::vector<void*> in, out;
    auto take = [&](const char* name, ffi::AnyBuffer buffer, bool is_vector, std::vector<void*>& into) {
      check_type(name, buffer.element_type(), is_vector ? ffi::DataType::F32 : x.element_type());
      check_shape(name, shape(name, buffer), is_vector ? Dims{channels} : dims);
      into.push_back(buffer.untyped_data());
    };
    size_t large = results.size() == 3 ? 2 : 1;
    for (size_t i = 0; i < 3; ++i) take("argument", *arguments.get<ffi::AnyBuffer>(i), i >= large, in);
    for (size_t i = 0; i < results.size(); ++i) take("result", **results.get<ffi::AnyBuffer>(i), i > 0, out);
    Turn turn;
    (wide ? run<float> : run<BFloat16>)(in, out, rows, channels, epsilon);
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxLayerNorm, cnnjax::LayerNorm,
                              xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<float>("epsilon"));
#pragma GCC visibility pop
