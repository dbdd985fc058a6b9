// Networks in use: dividing them into stages, placing their values, and running them.
#include "program.h"

#include <algorithm>
#include <cmath>

namespace cnnjax {

using dnnl::memory;

namespace {

constexpr int64_t kSliceBytes = 2 << 20;   // of what a step reads and writes, to stay near the cores
constexpr int64_t kMostImages = 8;         // of a slice
constexpr int64_t kLargeWeights = 1 << 20;  // of a dense layer: read once for all images, not for each slice
constexpr int64_t kFewProducts = 1 << 20;   // of an image: waking a second thread takes longer
constexpr int64_t kFewBytes = 16 << 10;     // that a step without products reads: likewise
constexpr size_t kPlans = 64;

// What a value takes: a page's end and some lines beside it, so that values do not begin at one line of the cache.
int64_t room(int64_t bytes) { return (bytes + 4095) / 4096 * 4096 + 64 * 5; }

char* aligned(std::vector<char>& bytes) {
  return bytes.data() + 64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64;
}

}  // namespace

int64_t Program::add_value(const Value& value) {
  int64_t size = 1;
  for (int64_t axis : {value.height, value.width, value.channels}) {
    check(axis > 0 && axis <= kLargestAxis, "a value of ", axis, " numbers along an axis");
    check((size *= axis) <= kLargestAxis, "a value of more than 2^30 numbers");
  }
  check(value.form >= kOwn && value.form <= kCoded && (!values_.empty() || value.form == kOwn), "form ", value.form);
  values_.push_back(value);
  return static_cast<int64_t>(values_.size()) - 1;
}

void Program::add_step(Step step) {
  std::swap(step.codes, codes_), codes_ = {};
  check(result_ < 0, "a finished program takes no steps");
  check_step(step, values_);
  check(step.y > 0, "a step writes the images");
  steps_.push_back(step);
}

// Notes when each value is written and read, and checks that it is written before.
void Program::finish(int64_t result) {
  check(result_ < 0 && result > 0 && result < static_cast<int64_t>(values_.size()) && values_[result].form == kWide,
        "result ", result);
  const size_t never = steps_.size();
  first_.assign(values_.size(), never), last_.assign(values_.size(), 0);
  first_[0] = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    for (int64_t value : {steps_[i].x, steps_[i].other}) {
      if (value < 0) continue;
      check(value == 0 || first_[value] < i, "step ", i, " reads value ", value, " before it is written");
      last_[value] = i;
    }
    first_[steps_[i].y] = std::min(first_[steps_[i].y], i);
    last_[steps_[i].y] = i;
  }
  check(first_[result] < never, "the result is never written");
  last_[result] = never;
  result_ = result;
  packed_.resize(steps_.size());
  for (const Step& step : steps_) {
    const Value& y = values_[step.y];
    if (is_layer(step)) products_ += y.height * y.width * step.weight_count;
  }
  divide();
  Turn turn;
  prepare(1, threads_for(1));  // packs the weights, or throws where oneDNN has no such layers for the processor
  for (const auto& [key, made] : layers_)
    if (made.first->is_slow())
      throw Unsupported("step " + std::to_string(std::get<0>(key)) + " has only oneDNN's reference loop");
}

// Consecutive steps that take slices of one size.
void Program::divide() {
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    int64_t each = bytes(step.x) + bytes(step.y) + (step.other >= 0 ? bytes(step.other) : 0), images = kMostImages;
    while (images > 1 && images * each > kSliceBytes) images /= 2;
    if (step.kind == kDense && step.weight_count > kLargeWeights / 4 && values_[step.y].size() == values_[step.y].channels)
      images = 0;
    else if (!stages_.empty() && stages_.back().images > 0)
      images = std::max(images, stages_.back().images);  // small layers among large ones are no stage of their own
    if (stages_.empty() || stages_.back().images != images) stages_.push_back({i, i, images});
    stages_.back().end = i + 1;
  }
}

// The steps, from and to, in which a value has to be kept. The slices of a stage run past each other, in threads and
// one after the other: while one writes the stage's last value, another may still have to read its first, so that what
// all slices share is kept for whole stages.
std::pair<size_t, size_t> Program::life(int64_t value, bool shared) const {
  std::pair<size_t, size_t> life = {first_[value], last_[value]};
  if (!shared) return life;
  for (const Stage& stage : stages_) {
    if (stage.begin <= first_[value] && first_[value] < stage.end) life.first = stage.begin;
    if (stage.begin <= last_[value] && last_[value] < stage.end) life.second = stage.end - 1;
  }
  return life;
}

// Gives the values that steps [begin, end) write places: each the first gap that is free as long as it lives.
void Program::place(Plan& plan, size_t begin, size_t end, int64_t images, bool shared) const {
  std::vector<int64_t> placed;
  int64_t& most = shared ? plan.shared_bytes : plan.own_bytes;
  for (size_t i = begin; i < end; ++i) {
    int64_t value = steps_[i].y;
    if (plan.shared[value] != shared || plan.offsets[value] >= 0 || value == result_) continue;
    int64_t size = room(images * bytes(value)), at = 0;
    auto [from, to] = life(value, shared);
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (int64_t other : placed)
      if (auto [begins, ends] = life(other, shared); ends >= from && begins <= to)
        taken.push_back({plan.offsets[other], plan.offsets[other] + room(images * bytes(other))});
    std::sort(taken.begin(), taken.end());
    for (auto [from, to] : taken) {
      if (at + size <= from) break;
      at = std::max(at, to);
    }
    plan.offsets[value] = at, most = std::max(most, at + size);
    placed.push_back(value);
  }
}

Plan Program::plan(int64_t count) const {
  Plan plan;
  plan.offsets.assign(values_.size(), -1), plan.shared.assign(values_.size(), true);
  for (const Stage& stage : stages_)
    for (size_t i = stage.begin; i < stage.end; ++i) {
      int64_t value = steps_[i].y;
      plan.shared[value] = first_[value] < stage.begin || last_[value] >= stage.end || stage.images == 0;
    }
  place(plan, 0, steps_.size(), count, true);
  for (const Stage& stage : stages_) place(plan, stage.begin, stage.end, stage.images, false);
  return plan;
}

// A step's primitive for slices of one size; its weights are packed once for each layout.
FusedLayer& Program::layer(size_t step, int64_t images, bool single) {
  auto key = std::make_tuple(step, images, single);
  auto found = layers_.find(key);
  if (found != layers_.end()) return *found->second.first;
  Threads some(single ? 1 : omp_get_max_threads());
  std::unique_ptr<FusedLayer> layer = make_layer(steps_[step], values_, type_, images);
  std::shared_ptr<memory> weights;
  for (auto& [desc, some] : packed_[step])
    if (desc == layer->weights()) weights = some;
  if (!weights) {
    weights = layer->pack(steps_[step]);
    packed_[step].push_back({layer->weights(), weights});
  }
  scratch_ = std::max<int64_t>(scratch_, layer->scratch_bytes());
  return *layers_.emplace(key, std::make_pair(std::move(layer), weights)).first->second.first;
}

// Makes all that a batch of that size needs, so that threads only look it up.
void Program::prepare(int64_t count, int threads) {
  Threads some(threads);
  for (const Stage& stage : stages_) {
    bool in_turn = stage.images == 0 || count == 1 || threads == 1;
    for (size_t i = stage.begin; i < stage.end; ++i) {
      if (!is_layer(steps_[i])) continue;
      for (int64_t thread = 0; thread < (in_turn ? 1 : threads); ++thread) {
        int64_t own = in_turn ? count : count * (thread + 1) / threads - count * thread / threads;
        int64_t each = stage.images ? stage.images : own;
        bool single = !in_turn || threads == 1;
        if (own >= each) layer(i, each, single);
        if (own % each) layer(i, own % each, single);
      }
    }
  }
}

void Program::run_step(size_t index, int64_t images, bool single, const std::function<char*(int64_t)>& where,
                       char* scratch) {
  const Step& step = steps_[index];
  char *x = where(step.x), *y = where(step.y), *other = step.other >= 0 ? where(step.other) : nullptr;
  if (is_layer(step)) {
    thread_local dnnl::stream stream(cpu());
    auto& [layer, weights] = layers_.at(std::make_tuple(index, images, single));
    if (other && other != y) std::memcpy(y, other, images * bytes(step.y));
    layer->run(stream, *weights, step, x, y, scratch);
    return record(index, images, reinterpret_cast<float*>(y));
  }
  auto plain = [&](int64_t part, int64_t parts) {
    Part some = {images, part, parts};
    (type_ == memory::data_type::f32 ? run_plain<float> : run_plain<uint16_t>)(step, values_, x, other, y, some);
  };
  if (single || images * bytes(step.x) < kFewBytes) {
    plain(0, 1);
  } else {
#pragma omp parallel
    plain(omp_get_thread_num(), omp_get_num_threads());
  }
  record(index, images, reinterpret_cast<float*>(y));
}

void Program::ranges(float* low, float* high, int64_t steps) {
  check(steps == static_cast<int64_t>(steps_.size()) && type_ == memory::data_type::f32, "ranges of ", steps, " steps");
  Turn turn;
  for (size_t i = 0; i < ranges_.size(); ++i) low[i] = ranges_[i].first, high[i] = ranges_[i].second;
  ranges_.assign(steps_.size(), {INFINITY, -INFINITY});
}

void Program::record(size_t step, int64_t images, const float* y) {
  if (ranges_.empty() || steps_[step].kind == kCopy) return;  // a copy writes part of y, of numbers known from x
  const int64_t count = images * values_[steps_[step].y].size();
  float low = y[0], high = y[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < count; ++i) low = std::min(low, y[i]), high = std::max(high, y[i]);
  std::lock_guard<std::mutex> lock(recording_);
  ranges_[step] = {std::min(ranges_[step].first, low), std::max(ranges_[step].second, high)};
}

void Program::run_stage(const Stage& stage, const Plan& plan, const char* x, char* y, int64_t count,
                        int threads) {
  auto slice = [&](int64_t first, int64_t images, bool single, std::vector<char>& own) {
    char* scratch = aligned(own);
    char* mine = scratch + (scratch_ + 4095) / 4096 * 4096;
    auto where = [&](int64_t value) -> char* {
      if (value == 0) return const_cast<char*>(x) + first * bytes(0);
      if (value == result_) return y + first * bytes(value);
      if (plan.shared[value]) return aligned(shared_) + plan.offsets[value] + first * bytes(value);
      return mine + plan.offsets[value];
    };
    for (size_t i = stage.begin; i < stage.end; ++i) run_step(i, images, single, where, scratch);
  };
  if (stage.images == 0) return slice(0, count, threads == 1, own_[0]);
  if (count == 1 || threads == 1) {
    for (int64_t first = 0; first < count; first += stage.images)
      slice(first, std::min(stage.images, count - first), threads == 1, own_[0]);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t thread = 0; thread < threads; ++thread) {
    int64_t end = count * (thread + 1) / threads;
    for (int64_t first = count * thread / threads; first < end; first += stage.images)
      slice(first, std::min(stage.images, end - first), true, own_[thread]);
  }
}

int Program::threads_for(int64_t count) const {
  return count == 1 && products_ < kFewProducts ? 1 : omp_get_max_threads();
}

void Program::run(Turn&, const void* x, void* y, int64_t count) {
  check(result_ > 0, "an unfinished program");
  const int threads = threads_for(count);
  auto found = plans_.find({count, threads});
  if (found == plans_.end()) {
    prepare(count, threads);
    if (plans_.size() >= kPlans) plans_.clear();
    found = plans_.emplace(std::make_pair(count, threads), plan(count)).first;
  }
  const Plan& where = found->second;
  if (static_cast<int64_t>(shared_.size()) < where.shared_bytes + 64) shared_.resize(where.shared_bytes + 64);
  own_.resize(std::max<size_t>(own_.size(), threads));
  size_t own = where.own_bytes + scratch_ + 4096 + 64;
  for (auto& some : own_)
    if (some.size() < own) some.resize(own);
  Threads some(threads);
  for (const Stage& stage : stages_)
    run_stage(stage, where, static_cast<const char*>(x), static_cast<char*>(y), count, threads);
}

}  // namespace cnnjax
