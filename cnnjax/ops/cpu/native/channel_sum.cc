// The sum over rows of [groups, rows..., channels], of numbers or of the products of two arrays, in float32.
#include <algorithm>

#include "engine.h"
#include "loops.h"

namespace cnnjax {
namespace {

constexpr int64_t kBlockNumbers = 1 << 14;  // that one thread sums in float32

template <class T>
CNNJAX_INLINE void sums_of(const T* x, const T* by, int64_t rows, int64_t channels, float* __restrict sum) {
  std::fill(sum, sum + channels, 0.0f);
  if (!by) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < channels; ++c) sum[c] += widen(x[r * channels + c]);
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < channels; ++c) sum[c] += widen(x[r * channels + c]) * widen(by[r * channels + c]);
}

#define CNNJAX_FOR(T)                                                                                          \
  CNNJAX_VECTORIZED void sums(const T* x, const T* by, int64_t rows, int64_t channels, float* sum) {           \
    sums_of(x, by, rows, channels, sum);                                                                       \
  }
CNNJAX_FOR(float)
CNNJAX_FOR(BFloat16)

template <class T>
void run(const void* x_, const void* by_, int64_t groups, int64_t rows, int64_t channels, float* result) {
  auto x = static_cast<const T*>(x_), by = static_cast<const T*>(by_);
  int64_t block = std::max<int64_t>({1, kBlockNumbers / channels, rows / 512});
  int64_t blocks = (rows + block - 1) / block;
  std::vector<float> parts(groups * blocks * channels);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < groups * blocks; ++i) {
    int64_t begin = i % blocks * block, at = (i / blocks * rows + begin) * channels;
    sums(x + at, by ? by + at : nullptr, std::min(block, rows - begin), channels, &parts[i * channels]);
  }
  std::vector<double> total(channels);
  for (int64_t g = 0; g < groups; ++g) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = 0; c < channels; ++c) total[c] += parts[(g * blocks + b) * channels + c];
    for (int64_t c = 0; c < channels; ++c) result[g * channels + c] = static_cast<float>(total[c]);
  }
}

// x (, by) of [groups, rows..., channels] -> [groups, channels]
ffi::Error ChannelSum(ffi::RemainingArgs arguments, ffi::Result<ffi::AnyBuffer> sum) {
  return guarded([&] {
    check(arguments.size() == 1 || arguments.size() == 2, arguments.size(), " arguments of a sum");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0);
    bool wide = compute_type("x", x.element_type()) == dnnl::memory::data_type::f32;
    Dims dims = shape("x", x);
    check(dims.size() >= 3, "x ", show(dims), ": must be of groups, rows and channels");
    int64_t rows = 1;
    for (size_t axis = 1; axis + 1 < dims.size(); ++axis) rows *= dims[axis];
    const void* by = nullptr;
    if (arguments.size() == 2) {
      ffi::AnyBuffer other = *arguments.get<ffi::AnyBuffer>(1);
      check_type("by", other.element_type(), x.element_type());
      check_shape("by", shape("by", other), dims);
      by = other.untyped_data();
    }
    check_type("sum", sum->element_type(), ffi::DataType::F32);
    check_shape("sum", shape("sum", *sum), {dims[0], dims.back()});
    Turn turn;
    (wide ? run<float> : run<BFloat16>)(x.untyped_data(), by, dims[0], rows, dims.back(),
                                        static_cast<float*>(sum->untyped_data()));
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxChannelSum, cnnjax::ChannelSum,
                              xla::ffi::Ffi::Bind().RemainingArgs().Ret<xla::ffi::AnyBuffer>());
#pragma GCC visibility pop
