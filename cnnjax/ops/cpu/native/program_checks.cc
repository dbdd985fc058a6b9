// The check of every step of a network in use: no step reads or writes beside its values.
#include <cmath>

#include "program.h"

namespace cnnjax {
namespace {

void check_convolution(const Step& step, const Value& in, const Value& out) {
  const Dims& n = step.numbers;
  check(n.size() == 11, "convolution of ", n.size(), " numbers");
  for (int64_t number : n) check(number >= 0 && number < kLargestAxis, "convolution ", show(n));
  check(n[0] > 0 && n[1] > 0 && n[2] > 0 && n[3] > 0 && n[8] > 0 && n[9] > 0 && n[10] > 0, "convolution ", show(n));
  check(in.channels % n[10] == 0 && out.channels % n[10] == 0, "groups ", n[10]);
  check(step.weight_count == n[0] * n[1] * (in.channels / n[10]) * out.channels, "weights ", step.weight_count);
  int64_t rows = in.height + n[4] + n[5] - (n[0] - 1) * n[8] - 1;
  int64_t columns = in.width + n[6] + n[7] - (n[1] - 1) * n[9] - 1;
  check(rows >= 0 && columns >= 0 && rows / n[2] + 1 == out.height && columns / n[3] + 1 == out.width,
        "convolution ", show(n), " to ", out.height, " x ", out.width);
}

void check_copy(const Dims& n, const Value& in, const Value& out) {
  check(n.size() == 12, "copy of ", n.size(), " numbers");
  for (int64_t number : n) check(number >= 0 && number < kLargestAxis, "copy ", show(n));
  check(n[5] > 0 && n[6] > 0 && n[7] > 0 && n[0] + (n[5] - 1) * n[3] < in.height &&
            n[1] + (n[6] - 1) * n[4] < in.width && n[2] + n[7] <= in.channels && n[8] + n[5] <= out.height &&
            n[9] + n[6] <= out.width && n[10] + n[7] <= out.channels,
        "copy ", show(n), " leaves its arrays");
}

void check_pool(const Step& step, const Value& in, const Value& out) {
  const Dims& n = step.numbers;
  check(n.size() == 6, "pooling of ", n.size(), " numbers");
  for (int i = 0; i < 6; ++i) check(n[i] >= (i < 4) && n[i] < kLargestAxis, "pooling ", show(n));
  check(n[4] < n[0] && n[5] < n[1] && in.channels == out.channels && (out.height - 1) * n[2] - n[4] < in.height &&
            (out.width - 1) * n[3] - n[5] < in.width,
        "pooling ", show(n), ": a window without pixels");
  check(step.kind == kMaxPool || step.weight_count == out.height * out.width, "weights ", step.weight_count);
}

void check_coding(const Value& value, const Coding& as) {
  check(value.form != kCoded || (as.scale > 0 && std::isfinite(as.scale)), "codes of scale ", as.scale);
}

// What a step takes of numbers and of codes.
void check_forms(const Step& step, const Value& in, const Value& out, const Value* other) {
  bool product = step.kind == kConvolve || step.kind == kDense, pointwise = step.kind == kPointwise;
  check(in.form != kWide && (!other || other->form != kWide) && (out.form != kWide || pointwise || step.kind == kDense),
        "values between the steps are all of one type");
  check_coding(in, step.codes.x), check_coding(out, step.codes.y);
  if (other) check_coding(*other, step.codes.other);
  if (pointwise) return;
  if (step.kind == kSumPool) return check(out.form == kOwn, "sums are no codes");
  if (!product) {
    check(in.form == out.form && (in.form == kOwn || step.kind != kLayerNorm), "codes in or out alone");
    bool same = step.codes.x.is_signed == step.codes.y.is_signed && step.codes.x.scale == step.codes.y.scale;
    return check(in.form == kOwn || same, "codes that become others");
  }
  check(step.codes.scales ? in.form == kCoded && step.codes.scale_count == out.channels : in.form == kOwn && out.form != kCoded,
        "codes and ", step.codes.scale_count, " scales");
  check(!other || other->form == out.form, "numbers added to codes");
}

}  // namespace

void check_step(const Step& step, const std::vector<Value>& values) {
  int64_t count = static_cast<int64_t>(values.size());
  check(step.x >= 0 && step.x < count && step.y >= 0 && step.y < count && step.x != step.y && step.other < count &&
            (step.other != step.y || step.kind <= kDense),
        "values ", step.x, ", ", step.other, ", ", step.y, " of ", count);
  const Value &in = values[step.x], &out = values[step.y];
  bool pointwise = step.kind == kPointwise, dense = step.kind == kDense, convolve = step.kind == kConvolve;
  check(step.kind >= kConvolve && step.kind <= kLayerNorm && step.act >= kNone && step.act <= kTanh, "kind ", step.kind);
  check_forms(step, in, out, step.other >= 0 ? &values[step.other] : nullptr);
  bool alike = in.height == out.height && in.width == out.width;
  if (convolve) check_convolution(step, in, out);
  if (dense) {
    bool vector = out.height * out.width == 1;
    check((vector || alike) && step.weight_count == (vector ? in.size() : in.channels) * out.channels, "weights ",
          step.weight_count);
  }
  if (step.kind == kMaxPool || step.kind == kSumPool) check_pool(step, in, out);
  if (step.kind == kCopy) check_copy(step.numbers, in, out);
  if (pointwise || step.kind == kLayerNorm) {
    bool bare = pointwise && !step.weights && step.other < 0;  // takes values of another shape
    check(bare ? in.size() == out.size() : alike && in.channels == out.channels, "x and y differ");
    bool vectors = step.weight_count == in.channels && step.bias_count == in.channels;
    check(vectors || (pointwise && !step.weights && !step.bias), "weights ", step.weight_count, ", bias ",
          step.bias_count);
    check(!pointwise || step.numbers.size() == 1, "pointwise of ", step.numbers.size(), " numbers");
  }
  if ((dense || convolve) && step.bias) check(step.bias_count == out.channels, "bias ", step.bias_count);
  if (step.other >= 0) {
    const Value& other = values[step.other];
    bool fits = other.size() == out.size() || (pointwise && other.size() == in.channels);
    check(fits && out.form != kWide && (pointwise || dense || convolve), "values that are added differ");
  }
}

}  // namespace cnnjax
