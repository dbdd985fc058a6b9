// A trained network as a list of steps on NHWC values, run in one call: a batch goes through in slices small enough
// that what one step writes is still in the cache when the next one reads it.
#pragma once

#include "engine.h"

namespace cnnjax {

enum Kind : int64_t { kConvolve, kDense, kMaxPool, kSumPool, kPointwise, kCopy, kLayerNorm };
enum Act : int64_t { kNone, kRelu, kClip, kSwish, kGelu, kGeluTanh, kHardSwish, kLogistic, kHardSigmoid, kTanh };

// What one image has of a value; a vector has height and width 1.
struct Value {
  int64_t height, width, channels;
  bool wide;  // float32 whatever the others are: the logits
  int64_t size() const { return height * width * channels; }
};

// What a step reads and writes: indices of values, -1 for none. `numbers` and the vectors belong to its kind:
// convolution: kh kw, strides, padding top bottom left right, dilation, groups; weights HWIO, bias [K]
// dense: weights [C, K], bias [K]
// pooling: window, strides, top left; of sums: weights [H', W'] that they are multiplied by
// pointwise: act(x * weights + bias + other), or with 1 act((x * weights + bias) * other), other of one pixel or all
// copy: begin h w c, strides h w, extent h w c, place in y h w c, and whether y is cleared before
// layer norm: weights and bias [C]; alpha is epsilon
struct Step {
  Kind kind;
  int64_t x, other, y;
  Act act;
  float alpha, beta;
  Dims numbers;
  const float *weights, *bias;  // the caller keeps them
  int64_t weight_count, bias_count;
};

// Throws BadCall unless a step fits its values.
void check_step(const Step& step, const std::vector<Value>& values);

// What one of several threads does of a step for some images: an equal share of the pixels.
struct Part {
  int64_t images, index, parts;
  std::pair<int64_t, int64_t> of(int64_t pixels) const {
    int64_t all = images * pixels;
    return {all * index / parts, all * (index + 1) / parts};
  }
};

// The steps without a primitive of oneDNN; T is float, or uint16_t for bfloat16.
template <class T>
void run_plain(const Step& step, const std::vector<Value>& values, const T* x, const T* other, void* y, Part part);

// A step by oneDNN for slices of `count` images, made for the threads that are set.
class FusedLayer {
 public:
  FusedLayer(const Step& step, const std::vector<Value>& values, dnnl::memory::data_type type, int64_t count);
  size_t scratch_bytes() const { return scratch_.get_size(); }
  const dnnl::memory::desc& weights() const { return weights_; }
  const std::string& name() const { return name_; }
  std::shared_ptr<dnnl::memory> pack(const Step& step) const;
  void run(dnnl::stream& stream, const dnnl::memory& weights, const float* bias, void* x, void* y,
           void* scratch) const;

 private:
  dnnl::primitive primitive_;
  dnnl::memory::desc x_, y_, weights_, callers_, bias_, scratch_;
  std::string name_;
};

}  // namespace cnnjax
