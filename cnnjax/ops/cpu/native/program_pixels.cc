// Networks in use from an image's bytes to the probabilities of its classes.
#include <algorithm>

#include "exponential.h"
#include "program.h"

namespace cnnjax {
namespace {

constexpr int64_t kLeastShared = 1 << 15;  // numbers that more than one thread converts

#define CNNJAX_PIXELS(T)                                                                                      \
  CNNJAX_VECTORIZED void numbers(const uint8_t* pixels, const float* factor, const float* shift, int64_t count, \
                                 T* to) {                                                                     \
    for (int64_t i = 0; i < count; ++i) narrow(pixels[i] * factor[i] + shift[i], to[i]);                      \
  }
CNNJAX_PIXELS(float)
CNNJAX_PIXELS(BFloat16)

// Of images in rows of `width` numbers, for each of which there are a factor and a shift.
template <class T>
void convert(const uint8_t* pixels, const float* factor, const float* shift, int64_t rows, int64_t width, T* to) {
#pragma omp parallel for if (rows * width >= kLeastShared)
  for (int64_t row = 0; row < rows; ++row) numbers(pixels + row * width, factor, shift, width, to + row * width);
}

CNNJAX_VECTORIZED void softmax(float* y, int64_t count) {
  float most = y[0], sum = 0;
  for (int64_t i = 1; i < count; ++i) most = y[i] > most ? y[i] : most;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = exp_of(y[i] - most);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += y[i];
  for (int64_t i = 0; i < count; ++i) y[i] /= sum;
}

}  // namespace

void Program::predict(Turn& turn, const uint8_t* pixels, const float* factor, const float* shift, int64_t count,
                      float* y) {
  check(result_ > 0 && count > 0, "an unfinished program, or ", count, " images");
  const Value& image = values_.front();
  const int64_t width = image.width * image.channels, rows = count * image.height;
  factors_.resize(width), shifts_.resize(width);
  for (int64_t i = 0; i < width; ++i) factors_[i] = factor[i % image.channels], shifts_[i] = shift[i % image.channels];
  if (static_cast<int64_t>(images_.size()) < count * bytes(0)) images_.resize(count * bytes(0));
  if (type_ == dnnl::memory::data_type::f32)
    convert(pixels, factors_.data(), shifts_.data(), rows, width, reinterpret_cast<float*>(images_.data()));
  else
    convert(pixels, factors_.data(), shifts_.data(), rows, width, reinterpret_cast<BFloat16*>(images_.data()));
  run(turn, images_.data(), y, count);
  const int64_t classes = values_[result_].size();
  for (int64_t i = 0; i < count; ++i) softmax(y + i * classes, classes);
}

}  // namespace cnnjax
