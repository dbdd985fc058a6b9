// Batch normalization of [..., channels] in training, an activation after it, 2x2 maximum pooling of NHWC images after
// both if asked for, and the gradient. The gradient computes the normalized values again, from x.
//
// The rows are cut into blocks that fit into a core's cache. A block's mean and sum of squared distances from
// it take two passes over the block but one over memory; the blocks' moments are merged in order (Chan, Golub,
// LeVeque 1983, "Algorithms for computing the sample variance"), so that the result depends neither on the
// number of threads nor, in its accuracy, on how far the mean is from zero.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "engine.h"
#include "exponential.h"
#include "loops.h"
#include "norm_pool.h"

namespace cnnjax {
namespace {

template <class T>
CNNJAX_INLINE void moments_of(const T* x, int64_t rows, int64_t width, float* __restrict mean, float* __restrict squares) {
  std::fill(mean, mean + width, 0.0f);
  std::fill(squares, squares + width, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) mean[c] += widen(x[r * width + c]);
  for (int64_t c = 0; c < width; ++c) mean[c] /= static_cast<float>(rows);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      float distance = widen(x[r * width + c]) - mean[c];
      squares[c] += distance * distance;
    }
}

// As `ACTS` of layers.py has them.
enum Activation : int64_t { kIdentity, kRelu, kRelu6, kSwish, kHardSwish };

// Between two bounds, each NaN for none: ReLU, ReLU6 and no activation. The gradient is 0 at the bounds.
struct Clip {
  float floor, ceiling;
  CNNJAX_INLINE float value(float x) const {
    float raised = x < floor ? floor : x;  // NaN stays
    return raised > ceiling ? ceiling : raised;
  }
  CNNJAX_INLINE float gradient(float x, float dy) const { return (x <= floor) | (x >= ceiling) ? 0.0f : dy; }
};

struct Swish : Silu {
  CNNJAX_INLINE float gradient(float x, float dy) const { return slope(x) * dy; }
};

// x times ReLU6(x + 3) / 6.
struct HardSwish {
  static constexpr Clip kClip{0.0f, 6.0f};
  CNNJAX_INLINE float value(float x) const { return x * (kClip.value(x + 3) * (1 / 6.0f)); }
  CNNJAX_INLINE float gradient(float x, float dy) const {
    return dy * ((kClip.value(x + 3) + kClip.gradient(x + 3, x)) * (1 / 6.0f));
  }
};

// Whether the pass that sums keeps the gradient before the activation, in dx, for the next: in bfloat16 that is
// less work than a second exponential.
template <class Act, class T>
constexpr bool kKept = std::is_same_v<Act, Swish> && sizeof(T) == 2;

template <class Act, class T>
CNNJAX_INLINE void normalize_of(Act act, const T* x, int64_t rows, int64_t width, const float* factor,
                                const float* mean, const float* bias, T* __restrict y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c)
      narrow(act.value((widen(x[r * width + c]) - mean[c]) * factor[c] + bias[c]), y[r * width + c]);
}

template <class Act, class T>
CNNJAX_INLINE void sums_of(Act act, const T* x, const T* dy, int64_t rows, int64_t width, const float* factor,
                           const float* mean, const float* bias, float* __restrict dscale, float* __restrict dbias,
                           T* __restrict dx) {
  std::fill(dscale, dscale + width, 0.0f);
  std::fill(dbias, dbias + width, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      float distance = widen(x[r * width + c]) - mean[c], all = widen(dy[r * width + c]);
      float grad = act.gradient(distance * factor[c] + bias[c], all);  // a load that hangs on x is no vector's
      if constexpr (kKept<Act, T>) narrow(grad, dx[r * width + c]);
      dscale[c] += grad * distance;
      dbias[c] += grad;
    }
}

template <class Act, class T>
CNNJAX_INLINE void gradient_of(Act act, const T* x, const T* dy, int64_t rows, int64_t width, const float* factor,
                               const float* mean, const float* bias, const float* slope, const float* offset,
                               T* __restrict dx) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      float distance = widen(x[r * width + c]) - mean[c], grad;
      if constexpr (kKept<Act, T>) {
        grad = widen(dx[r * width + c]);
      } else {
        float all = widen(dy[r * width + c]);
        grad = act.gradient(distance * factor[c] + bias[c], all);
      }
      narrow(factor[c] * grad - offset[c] - distance * slope[c], dx[r * width + c]);
    }
}

// Compiled for each type, activation and generation of processors.
#define CNNJAX_MOMENTS(T)                                                                                           \
  CNNJAX_VECTORIZED void moments(const T* x, int64_t rows, int64_t width, float* mean, float* squares) {           \
    moments_of(x, rows, width, mean, squares);                                                                     \
  }
#define CNNJAX_FOR(Act, T)                                                                                          \
  CNNJAX_VECTORIZED void normalize(Act act, const T* x, int64_t rows, int64_t width, const float* factor,          \
                                   const float* mean, const float* bias, T* y) {                                   \
    normalize_of(act, x, rows, width, factor, mean, bias, y);                                                      \
  }                                                                                                                \
  CNNJAX_VECTORIZED void sums(Act act, const T* x, const T* dy, int64_t rows, int64_t width, const float* factor,  \
                              const float* mean, const float* bias, float* dscale, float* dbias, T* dx) {          \
    sums_of(act, x, dy, rows, width, factor, mean, bias, dscale, dbias, dx);                                       \
  }                                                                                                                \
  CNNJAX_VECTORIZED void gradient(Act act, const T* x, const T* dy, int64_t rows, int64_t width,                   \
                                  const float* factor, const float* mean, const float* bias, const float* slope,   \
                                  const float* offset, T* dx) {                                                    \
    gradient_of(act, x, dy, rows, width, factor, mean, bias, slope, offset, dx);                                   \
  }
CNNJAX_MOMENTS(float)
CNNJAX_MOMENTS(BFloat16)
CNNJAX_FOR(Clip, float)
CNNJAX_FOR(Clip, BFloat16)
CNNJAX_FOR(Swish, float)
CNNJAX_FOR(Swish, BFloat16)
CNNJAX_FOR(HardSwish, float)
CNNJAX_FOR(HardSwish, BFloat16)

// How [rows, channels] is walked: `fold` rows side by side make one row of `width` numbers, so that few channels
// fill the vector registers too; the rows beyond the last whole one are the tail, a block of its own.
struct Plan {
  int64_t rows, channels, fold, width, wide_rows, block_rows, blocks, tail;
  Windows windows;

  Plan(int64_t rows_, int64_t channels_) : rows(rows_), channels(channels_) {
    fold = std::max<int64_t>(1, std::min<int64_t>(rows, 64 / channels));
    width = fold * channels;
    wide_rows = rows / fold;
    tail = rows - wide_rows * fold;
    block_rows = std::max<int64_t>({1, kBlockBytes / (4 * width), wide_rows / 512});
    blocks = (wide_rows + block_rows - 1) / block_rows;
  }
  int64_t begin(int64_t block) const { return block * block_rows * width; }
  int64_t count(int64_t block) const { return std::min(block_rows, wide_rows - block * block_rows); }
  std::vector<float> repeat(const float* vector) const {
    std::vector<float> wide(width);
    for (int64_t i = 0; i < width; ++i) wide[i] = vector[i % channels];
    return wide;
  }
};

void merge(const float* mean, const float* squares, int64_t channels, double count, double& total,
           std::vector<double>& all_mean, std::vector<double>& all_squares) {
  double sum = total + count;
  for (int64_t c = 0; c < channels; ++c) {
    double delta = mean[c] - all_mean[c];
    all_mean[c] += delta * (count / sum);
    all_squares[c] += squares[c] + delta * delta * (total * count / sum);
  }
  total = sum;
}

template <class Act, class T>
void forward(const Plan& p, Act act, const T* x, const float* scale, const float* bias, float epsilon,
             T* y, float* mean, float* var) {
  std::vector<float> block_mean((p.blocks + 1) * p.width), block_squares((p.blocks + 1) * p.width);
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < p.blocks; ++b)
    moments(x + p.begin(b), p.count(b), p.width, &block_mean[b * p.width], &block_squares[b * p.width]);
  double total = 0;
  std::vector<double> all_mean(p.channels), all_squares(p.channels);
  for (int64_t b = 0; b < p.blocks; ++b)
    for (int64_t i = b * p.width; i < (b + 1) * p.width; i += p.channels)
      merge(&block_mean[i], &block_squares[i], p.channels, p.count(b), total, all_mean, all_squares);
  const T* rest = x + p.wide_rows * p.width;
  if (p.tail) {
    float* at = &block_mean[p.blocks * p.width];
    float* squares = &block_squares[p.blocks * p.width];
    moments(rest, p.tail, p.channels, at, squares);
    merge(at, squares, p.channels, p.tail, total, all_mean, all_squares);
  }
  std::vector<float> factor(p.channels);
  for (int64_t c = 0; c < p.channels; ++c) {
    mean[c] = static_cast<float>(all_mean[c]);
    var[c] = static_cast<float>(all_squares[c] / total);
    factor[c] = scale[c] / std::sqrt(var[c] + epsilon);
  }
  if (p.windows.rows) {
    p.windows.each(factor.data(), mean, bias,
                   [&](int64_t, const WindowRow& row, int64_t from, int64_t to, int64_t) {
      normalize_windows(row, x + from, y + to);
    });
    return;
  }
  std::vector<float> factors = p.repeat(factor.data()), means = p.repeat(mean), biases = p.repeat(bias);
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < p.blocks; ++b)
    normalize(act, x + p.begin(b), p.count(b), p.width, factors.data(), means.data(), biases.data(), y + p.begin(b));
  if (p.tail) normalize(act, rest, p.tail, p.channels, factor.data(), mean, bias, y + p.wide_rows * p.width);
}

template <class Act, class T>
void backward(const Plan& p, Act act, const T* x, const T* dy, const float* mean, const float* var,
              const float* scale, const float* bias, float epsilon, T* dx, float* dscale, float* dbias) {
  std::vector<float> factor(p.channels), inverse(p.channels), slope(p.channels), offset(p.channels);
  for (int64_t c = 0; c < p.channels; ++c) {
    inverse[c] = 1 / std::sqrt(var[c] + epsilon);
    factor[c] = scale[c] * inverse[c];
  }
  std::vector<float> factors = p.repeat(factor.data()), means = p.repeat(mean), biases = p.repeat(bias);
  int64_t parts = p.windows.rows ? p.windows.blocks * p.channels : p.blocks * p.width + (p.tail ? p.channels : 0);
  std::vector<float> block_scale(parts), block_bias(parts);
  int64_t rest = p.wide_rows * p.width;
  if (p.windows.rows) {
    p.windows.each(factor.data(), mean, bias,
                   [&](int64_t b, const WindowRow& row, int64_t from, int64_t to, int64_t c) {
      sums_windows(row, x + from, dy + to, &block_scale[b * p.channels + c], &block_bias[b * p.channels + c]);
    });
  } else {
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < p.blocks; ++b)
      sums(act, x + p.begin(b), dy + p.begin(b), p.count(b), p.width, factors.data(), means.data(), biases.data(),
           &block_scale[b * p.width], &block_bias[b * p.width], dx + p.begin(b));
    if (p.tail)
      sums(act, x + rest, dy + rest, p.tail, p.channels, factor.data(), mean, bias, &block_scale[p.blocks * p.width],
           &block_bias[p.blocks * p.width], dx + rest);
  }
  std::vector<double> sum_scale(p.channels), sum_bias(p.channels);
  for (int64_t i = 0; i < parts; ++i) {
    sum_scale[i % p.channels] += block_scale[i];
    sum_bias[i % p.channels] += block_bias[i];
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    dscale[c] = static_cast<float>(sum_scale[c] * inverse[c]);
    dbias[c] = static_cast<float>(sum_bias[c]);
    offset[c] = static_cast<float>(factor[c] * (sum_bias[c] / p.rows));
    slope[c] = static_cast<float>(factor[c] * (static_cast<double>(dscale[c]) * inverse[c] / p.rows));
  }
  if (p.windows.rows) {
    p.windows.each(factor.data(), mean, bias,
                   [&](int64_t, const WindowRow& row, int64_t from, int64_t to, int64_t c) {
      gradient_windows(row, x + from, dy + to, &slope[c], &offset[c], dx + from);
    });
    return;
  }
  std::vector<float> slopes = p.repeat(slope.data()), offsets = p.repeat(offset.data());
#pragma omp parallel for schedule(dynamic)
  for (int64_t b = 0; b < p.blocks; ++b)
    gradient(act, x + p.begin(b), dy + p.begin(b), p.count(b), p.width, factors.data(), means.data(), biases.data(),
             slopes.data(), offsets.data(), dx + p.begin(b));
  if (p.tail)
    gradient(act, x + rest, dy + rest, p.tail, p.channels, factor.data(), mean, bias, slope.data(), offset.data(),
             dx + rest);
}

template <class Act, class T>
void run(const Plan& plan, Act act, const std::vector<void*>& in, const std::vector<void*>& out, float epsilon) {
  auto vector = [](void* data) { return static_cast<float*>(data); };
  auto large = [](void* data) { return static_cast<T*>(data); };
  if (in.size() == 3) {
    forward<Act, T>(plan, act, large(in[0]), vector(in[1]), vector(in[2]), epsilon, large(out[0]),
                    vector(out[1]), vector(out[2]));
  } else {
    backward<Act, T>(plan, act, large(in[0]), large(in[1]), vector(in[2]), vector(in[3]), vector(in[4]),
                     vector(in[5]), epsilon, large(out[0]), vector(out[1]), vector(out[2]));
  }
}

template <class T>
void dispatch(const Plan& plan, int64_t act, const std::vector<void*>& in, const std::vector<void*>& out,
              float epsilon) {
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  if (act == kSwish) return run<Swish, T>(plan, {}, in, out, epsilon);
  if (act == kHardSwish) return run<HardSwish, T>(plan, {}, in, out, epsilon);
  run<Clip, T>(plan, {act == kIdentity ? kNone : 0.0f, act == kRelu6 ? 6.0f : kNone}, in, out, epsilon);
}

// forward: x, scale, bias -> y, mean, var; backward: x, dy, mean, var, scale, bias -> dx, dscale, dbias.
ffi::Error BatchNorm(ffi::RemainingArgs arguments, ffi::RemainingRets results, float epsilon, int64_t act,
                     int64_t pool) {
  return guarded([&] {
    size_t large = arguments.size() == 6 ? 2 : 1;
    check((arguments.size() == 3 || arguments.size() == 6) && results.size() == 3, arguments.size(),
          " arguments and ", results.size(), " results of batch normalization");
    ffi::AnyBuffer x = *arguments.get<ffi::AnyBuffer>(0);
    auto type = compute_type("x", x.element_type());
    Dims dims = shape("x", x);
    int64_t channels = dims.back(), rows = 1;
    for (size_t axis = 0; axis + 1 < dims.size(); ++axis) rows *= dims[axis];
    Dims pooled = dims;
    Plan plan(rows, channels);
    check(act >= kIdentity && act <= kHardSwish, "activation ", act, ": must be from 0 to ", kHardSwish);
    if (pool != 1) {
      check(act <= kRelu, "activation ", act, " before pooling: must be 0 or 1");
      check(pool == 2 && dims.size() == 4 && dims[1] % 2 == 0 && dims[2] % 2 == 0 && channels % kLanes == 0, "x ",
            show(dims), " pooled by ", pool, ": must be by 2, and even images of a multiple of ", kLanes, " channels");
      pooled = {dims[0], dims[1] / 2, dims[2] / 2, channels};
      plan.windows = Windows(dims, act == kRelu ? 0.0f : -std::numeric_limits<float>::infinity());
    }
    std::vector<void*> in, out;
    auto take = [&](const char* name, ffi::AnyBuffer buffer, bool is_vector, const Dims& image,
                    std::vector<void*>& into) {
      check_type(name, buffer.element_type(), is_vector ? ffi::DataType::F32 : x.element_type());
      check_shape(name, shape(name, buffer), is_vector ? Dims{channels} : image);
      into.push_back(buffer.untyped_data());
    };
    for (size_t i = 0; i < arguments.size(); ++i)
      take("argument", *arguments.get<ffi::AnyBuffer>(i), i >= large, i == 0 ? dims : pooled, in);
    for (size_t i = 0; i < 3; ++i)
      take("result", **results.get<ffi::AnyBuffer>(i), i > 0, large == 1 ? pooled : dims, out);
    Turn turn;
    if (type == dnnl::memory::data_type::f32) {
      dispatch<float>(plan, act, in, out, epsilon);
    } else {
      dispatch<BFloat16>(plan, act, in, out, epsilon);
    }
  });
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CnnjaxBatchNorm, cnnjax::BatchNorm,
    xla::ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<float>("epsilon").Attr<int64_t>("act").Attr<int64_t>(
        "pool"));
#pragma GCC visibility pop
