// Convolutions of 3x3 windows by Winograd's method: weights are transformed, then blocks of tiles go through their
// products at each point. In training all of it happens in one call; a network in use keeps its transformed weights.
#pragma once

#include "winograd_tiles.h"

namespace cnnjax {
namespace {

// `Method` says what a tile is, how many there are and are taken at a time, and transforms pixels, weights and sums. Its
// numbers are of type T, and what is called a float here holds kCoupled of them.
template <class Method>
class Convolution {
 public:
  using T = typename Method::Number;

  Convolution(const Layer& layer, int64_t threads) : l(layer), depth(l.in.channels / Method::kCoupled) {
    tiles = Method::tiles_of(l);
    int64_t each_block = std::max<int64_t>(1, Method::most_tiles(l));
    blocks = parts_of(parts_of(tiles, each_block), threads) * threads;
    int64_t most = parts_of(tiles, blocks);
    m_row = std::min(kGroup, panels(l) * kWide);
    u_point = odd_lines(depth * kWide), panel = kPoints * u_point;
    v_point = odd_lines(most * depth), m_point = odd_lines(most * m_row);
  }
  int64_t weights() const { return l.groups * panels(l) * panel; }
  int64_t zeros() const { return odd_lines(l.in.channels); }  // that stand before the threads' numbers in `scratch`
  int64_t each() const { return kPoints * (v_point + m_point); }
  int64_t pack_calls() const { return l.groups * panels(l) * depth; }
  int64_t run_calls() const { return l.groups * blocks; }

  // One of the calls that transform the weights.
  void pack(const T* kernel, int64_t index, float* u) const {
    int64_t c = index % depth, k = index / depth % panels(l) * kWide, group = index / depth / panels(l);
    int64_t channel = c * Method::kCoupled;
    const T* from = kernel + channel * l.input + (group * l.out.channels + k) * l.output;
    if (l.flipped) from = kernel + (group * l.in.channels + channel) * l.input + k * l.output;
    float* to = u + index / depth * panel + c * kWide;
    Method::transform_kernel(l, from, std::min(kWide, l.out.channels - k), to, u_point);
  }

  // One of the calls that convolve: a block of tiles of a group.
  void run(const float* u, const T* x, const Ends& ends, T* y, float* scratch, int64_t index) const {
    float* v = scratch + zeros() + omp_get_thread_num() * each();
    float* m = v + kPoints * v_point;
    int64_t group = index / blocks, block = index % blocks, begin = tiles * block / blocks;
    int64_t count = tiles * (block + 1) / blocks - begin;
    for (int64_t t = 0; t < count; ++t) {
      Place first = Method::place_of(l, begin + t);
      first.row -= l.top, first.column -= l.left;
      Method::transform_inputs(x + group * l.in.channels, l.in, first, scratch, v + t * depth, v_point);
    }
    for (int64_t filter = 0; filter < l.out.channels; filter += kGroup) {
      int64_t filters = std::min(kGroup, l.out.channels - filter);
      for (int64_t point = 0; point < kPoints; ++point)
        split(parts_of(filters, kWide), kPanels, [&](int64_t k, int64_t wide) {
          const float* some = u + (group * panels(l) + filter / kWide + k) * panel + point * u_point;
          split(count, kTall, [&](int64_t t, int64_t tall) {
            const float* from = v + point * v_point + t * depth;
            float* to = m + point * m_point + t * m_row + k * kWide;
            Versions<Multiply, Product>::run(tall, wide, {from, depth, 0, 1, some, panel, depth, false, to, m_row});
          });
        });
      int64_t first = group * l.out.channels + filter;
      Ends own = ends;
      if (ends.bias) own.bias += first;
      for (int64_t t = 0; t < count; ++t)
        Method::transform_outputs(l, Method::place_of(l, begin + t), m + t * m_row, m_point, own, filters, y + first);
    }
  }

 private:
  static constexpr int64_t kPoints = Method::kPoints;
  const Layer& l;
  int64_t depth, tiles, blocks, m_row, u_point, panel, v_point, m_point;
};

// Each thread takes some of the calls. `All` is a convolution as above.
template <class All, class T = typename All::T>
void convolve(const Layer& l, Turn& turn, const T* x, const T* kernel, const T* bias, T* y) {
  All all_of(l, omp_get_max_threads());
  int64_t filters = l.groups * l.out.channels, before = all_of.weights() + odd_lines(filters);
  int64_t size = before + all_of.zeros() + omp_get_max_threads() * all_of.each();
  float* u = reinterpret_cast<float*>(turn.scratch(size * sizeof(float)));
  float *wide = u + all_of.weights(), *scratch = u + before;
  std::fill_n(scratch, all_of.zeros(), 0.0f);
  if (bias)
    for (int64_t k = 0; k < filters; ++k) wide[k] = widen(bias[k]);
  Ends ends = {bias ? wide : nullptr};
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t index = 0; index < all_of.pack_calls(); ++index) all_of.pack(kernel, index, u);
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < all_of.run_calls(); ++index) all_of.run(u, x, ends, y, scratch, index);
  }
}

template <class All, class T = typename All::T>
constexpr Packed<T> packed() {
  return {[](const Layer& l) { return All(l, 1).weights(); },
          [](const Layer& l, int64_t threads) {
            All all_of(l, threads);
            return all_of.zeros() + threads * all_of.each();
          },
          [](const Layer& l, const T* kernel, float* u) {
            All all_of(l, 1);
            for (int64_t index = 0; index < all_of.pack_calls(); ++index) all_of.pack(kernel, index, u);
          },
          [](const Layer& l, const float* u, const T* x, const Ends& ends, T* y, float* scratch, int64_t threads) {
            All all_of(l, threads);
            std::fill_n(scratch, all_of.zeros(), 0.0f);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
            for (int64_t index = 0; index < all_of.run_calls(); ++index) all_of.run(u, x, ends, y, scratch, index);
          }};
}

}  // namespace
}  // namespace cnnjax
