// A trained network as a list of steps on NHWC values, run in one call: a batch goes through in slices small enough
// that what one step writes is still in the cache when the next one reads it.
#pragma once

#include <map>

#include "engine.h"

namespace cnnjax {

enum Kind : int64_t { kConvolve, kDense, kMaxPool, kSumPool, kPointwise, kCopy, kLayerNorm };
enum Act : int64_t { kNone, kRelu, kClip, kSwish, kGelu, kGeluTanh, kHardSwish, kLogistic, kHardSigmoid, kTanh };

// The numbers of a value: of the program's type; float32 whatever that is, as the logits; or codes of 8 bits.
enum Form : int64_t { kOwn, kWide, kCoded };

// What one image has of a value; a vector has height and width 1.
struct Value {
  int64_t height, width, channels;
  Form form;
  int64_t size() const { return height * width * channels; }
};

// A code stands for code * scale, from -128 to 127 if signed, else from 0 to 255.
struct Coding {
  bool is_signed = false;
  float scale = 1;
  dnnl::memory::data_type type() const {
    return is_signed ? dnnl::memory::data_type::s8 : dnnl::memory::data_type::u8;
  }
};

// What the codes of a step stand for. A convolution or dense layer with scales reads codes: y is sum(codes * weights) *
// scales [K] + bias, and its weights are integers from -127 to 127.
struct Codes {
  const float* scales = nullptr;  // the caller keeps them, as the step's, until cnnjax_program_free returns
  int64_t scale_count = 0;
  Coding x = {}, other = {}, y = {};
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
  const float *weights, *bias;  // the caller keeps them until cnnjax_program_free returns
  int64_t weight_count, bias_count;
  Codes codes;
};

// Throws BadCall unless a step fits its values.
void check_step(const Step& step, const std::vector<Value>& values);

// A number after the step's activation.
float activated(const Step& step, float x);

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
void run_plain(const Step& step, const std::vector<Value>& values, const void* x, const void* other, void* y,
               Part part);

// A convolution or dense layer for slices of some images, made for the threads that are set.
class FusedLayer {
 public:
  virtual ~FusedLayer() = default;
  virtual bool is_slow() const { return false; }
  virtual size_t scratch_bytes() const = 0;
  virtual dnnl::memory::desc weights() const = 0;  // packed
  virtual std::shared_ptr<dnnl::memory> pack(const Step& step) const = 0;
  virtual void run(dnnl::stream& stream, const dnnl::memory& weights, const Step& step, void* x, void* y,
                   void* scratch) const = 0;
};

// By the fastest there is: one of those below, or else oneDNN.
std::unique_ptr<FusedLayer> make_layer(const Step& step, const std::vector<Value>& values,
                                       dnnl::memory::data_type type, int64_t count);

// Null unless it is a dense layer of one vector.
std::unique_ptr<FusedLayer> vector_layer(const Step& step, const std::vector<Value>& values,
                                         dnnl::memory::data_type type, int64_t count);

// Null where oneDNN is as fast.
std::unique_ptr<FusedLayer> winograd_layer(const Step& step, const std::vector<Value>& values,
                                           dnnl::memory::data_type type, int64_t count);

// Steps that slices of `images` go through one after the other; with 0 the whole batch goes at once.
struct Stage {
  size_t begin, end;
  int64_t images;
};

// Where the values of a batch lie: in memory for all images, or, those of one stage alone, in each thread's own.
struct Plan {
  std::vector<int64_t> offsets;
  std::vector<bool> shared;
  int64_t shared_bytes = 0, own_bytes = 0;
};

class Program {
 public:
  explicit Program(bool bfloat16)
      : type_(bfloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32) {}
  dnnl::memory::data_type type() const { return type_; }
  const std::vector<Value>& values() const { return values_; }
  int64_t add_value(const Value& value);
  // Of the step that is added next.
  Codes& codes() { return codes_; }
  void add_step(Step step);
  void finish(int64_t result);
  void run(Turn& turn, const void* x, void* y, int64_t count);
  // The same from pixels: x is pixels * factor [C] + shift [C], and y becomes probabilities.
  void predict(Turn& turn, const uint8_t* pixels, const float* factor, const float* shift, int64_t count, float* y);
  // The least and largest number that each step has written since the last call; the first one starts the record.
  void ranges(float* low, float* high, int64_t steps);

 private:
  int64_t bytes(int64_t value) const {
    Form form = values_[value].form;
    return values_[value].size() *
           (form == kCoded ? 1 : form == kWide || type_ == dnnl::memory::data_type::f32 ? 4 : 2);
  }
  bool is_layer(const Step& step) const { return step.kind == kConvolve || step.kind == kDense; }
  void divide();
  Plan plan(int64_t count) const;
  int threads_for(int64_t count) const;
  std::pair<size_t, size_t> life(int64_t value, bool shared) const;
  void place(Plan& plan, size_t begin, size_t end, int64_t images, bool shared) const;
  FusedLayer& layer(size_t step, int64_t images, bool single);
  void prepare(int64_t count, int threads);
  void run_stage(const Stage& stage, const Plan& plan, const char* x, char* y, int64_t count, int threads);
  void record(size_t step, int64_t images, const float* y);
  void run_step(size_t index, int64_t images, bool single, const std::function<char*(int64_t)>& where, char* scratch);

  dnnl::memory::data_type type_;
  Codes codes_;
  std::vector<Value> values_;
  std::vector<Step> steps_;
  std::vector<Stage> stages_;
  std::vector<size_t> first_, last_;  // the steps that write a value first and read it last
  int64_t result_ = -1, scratch_ = 0, products_ = 0;
  std::map<std::pair<int64_t, int>, Plan> plans_;  // by images and threads
  std::map<std::tuple<size_t, int64_t, bool>, std::pair<std::unique_ptr<FusedLayer>, std::shared_ptr<dnnl::memory>>> layers_;
  std::vector<std::vector<std::pair<dnnl::memory::desc, std::shared_ptr<dnnl::memory>>>> packed_;
  std::vector<char> shared_, images_;
  std::vector<float> factors_, shifts_;  // of a row of pixels
  std::vector<std::vector<char>> own_;
  std::mutex recording_;
  std::vector<std::pair<float, float>> ranges_;  // of each step; empty unless asked for
};

}  // namespace cnnjax
