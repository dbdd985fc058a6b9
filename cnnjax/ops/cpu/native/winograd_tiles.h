// What Winograd's method for 3x3 windows (winograd_squares.h) and for 5x5 ones (winograd_rows.h) have in common, on
// vectors of CNNJAX_LANES numbers, which the file that includes this defines (Lavin and Gray 2016, section 4.1).
//
// Outputs are A' [(G w) * (B' d)] with the matrices of Toom and Cook for 0, some pairs of points of opposite sign, and
// infinity; the gradients take the transposes. Symmetric points need fewer operations; on their choice, which decides
// what is rounded: Barabasz et al. 2020.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "vectors.h"
#include "winograd.h"

namespace cnnjax {
namespace {

constexpr int64_t kWide = 16;   // filters of a panel of weights
constexpr int64_t kGroup = 64;  // filters whose products lie in the second-level cache
// Rows and panels of a tile of products: its sums fill 24 of 32 registers, or 12 of 16.
constexpr int64_t kTall = kLanes == 16 ? 12 : 6, kPanels = kLanes == 16 ? 2 : 1;

int64_t parts_of(int64_t size, int64_t most) { return (size + most - 1) / most; }
int64_t down(const Layer& l) { return parts_of(l.out.height, kOut); }
int64_t across(const Layer& l) { return parts_of(l.out.width, kOut); }
int64_t panels(const Layer& l) { return parts_of(l.out.channels, kWide); }

// At least so many numbers, an odd count of cache lines: blocks that far apart do not push each other out.
int64_t odd_lines(int64_t numbers) { return (parts_of(numbers, 16) | 1) * 16; }

struct Place {
  int64_t image, row, column;
};

// Where the pixels of a rectangle are; zeros outside the image.
template <int kRows, int kColumns, class T>
inline void find_pixels(const T* data, const Images& images, Place first, const T* zeros, const T** pixels) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      int64_t row = first.row + i, column = first.column + j;
      bool inside = row >= 0 && row < images.height && column >= 0 && column < images.width;
      int64_t pixel = (first.image * images.height + row) * images.width + column;
      pixels[i * kColumns + j] = inside ? data + pixel * images.all : zeros;
    }
  }
}

// y cut to [low, high]; NaN stays.
CNNJAX_INLINE Vector bounded(Vector y, const Ends& ends) {
  y = y < all(ends.low) ? all(ends.low) : y;
  return y > all(ends.high) ? all(ends.high) : y;
}

inline float widen(float number) { return number; }
inline float widen(uint16_t bits) {
  uint32_t wide = uint32_t{bits} << 16;
  float number;
  std::memcpy(&number, &wide, sizeof number);
  return number;
}

// kTaps of the kAll weights of one input channel and a panel of output channels, zeros past the last filter.
template <int kAll, int kTaps, class T>
inline void pack_kernel(const Layer& l, const T* kernel, int64_t first, int64_t outputs, float (*packed)[kWide]) {
  for (int t = 0; t < kTaps; ++t) {
    const T* from = kernel + (l.flipped ? kAll - 1 - first - t : first + t) * l.tap;
    for (int64_t k = 0; k < kWide; ++k) packed[t][k] = k < outputs ? widen(from[k * l.output]) : 0;
  }
}

// A tile of kHeight rows and some panels of sums in registers.
template <int kHeight, int kPanels>
struct Tile {
  static constexpr int kVectors = kPanels * kWide / kLanes;
  Vector sums[kHeight][kVectors];

  CNNJAX_INLINE void clear() {
#pragma GCC unroll 12
    for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] = all(0);
  }

  // Adds kHeight numbers `row` apart times the panels' numbers, `panel` apart.
  CNNJAX_INLINE void add(const float* values, int64_t row, const float* by, int64_t panel) {
    Vector factors[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j)
      factors[j] = load(by + j * kLanes / kWide * panel + j * kLanes % kWide);
#pragma GCC unroll 12
    for (int i = 0; i < kHeight; ++i) {
      Vector value = all(values[i * row]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(value, factors[j], sums[i][j]);
    }
  }

  // Puts the sums there or adds them to larger ones, of which less is rounded than in registers.
  CNNJAX_INLINE void write(float* to, int64_t row, bool add) const {
#pragma GCC unroll 12
    for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        float* at = to + i * row + j * kLanes;
        store(at, add ? load(at) + sums[i][j] : sums[i][j]);
      }
  }
};

// Rows of tiles at one point: the sum over `taps` of v [rows][depth] times u [depth][16], whose panels lie `panel`
// apart, added to m or put there.
struct Product {
  const float* v;
  int64_t v_row, v_tap, taps;
  const float* u;
  int64_t panel, depth;
  bool add;
  float* m;
  int64_t m_row;
};

struct Multiply {
  template <int kHeight, int kPanels>
  CNNJAX_VECTORS static void run(const Product& p) {
    Tile<kHeight, kPanels> tile;
    tile.clear();
    const float *v = p.v, *u = p.u;
    for (int64_t tap = 0; tap < p.taps; ++tap, v += p.v_tap)
      for (int64_t c = 0; c < p.depth; ++c, u += kWide) tile.add(v + c, p.v_row, u, p.panel);
    tile.write(p.m, p.m_row, p.add);
  }
};

// `count` tiles of channels and of filters at one point: v [count][channels] times d [count][16 a panel], added to sum.
struct Correlation {
  const float* v;
  int64_t v_row;
  const float* d;
  int64_t d_row, count;
  float* sum;
  int64_t sum_row;
};

struct Correlate {
  template <int kHeight, int kPanels>
  CNNJAX_VECTORS static void run(const Correlation& c) {
    Tile<kHeight, kPanels> tile;
    tile.clear();
    const float *v = c.v, *d = c.d;
    for (int64_t t = 0; t < c.count; ++t, v += c.v_row, d += c.d_row) tile.add(v, 1, d, kWide);
    tile.write(c.sum, c.sum_row, true);
  }
};

// A kernel's versions for tiles of 1 to kTall rows and of 1 to kPanels panels.
template <class Kernel, class Arguments>
struct Versions {
  using Run = void (*)(const Arguments&);
  using Heights = std::array<Run, kTall>;

  template <int kPanels, int... kRows>
  static constexpr Heights heights(std::integer_sequence<int, kRows...>) {
    return {Kernel::template run<kRows + 1, kPanels>...};
  }
  template <int... kCounts>
  static constexpr std::array<Heights, sizeof...(kCounts)> table(std::integer_sequence<int, kCounts...>) {
    return {heights<kCounts + 1>(std::make_integer_sequence<int, kTall>())...};
  }

  static void run(int64_t height, int64_t panels, const Arguments& arguments) {
    static constexpr auto kAll = table(std::make_integer_sequence<int, kPanels>());
    kAll[panels - 1][height - 1](arguments);
  }
};

// Calls `run` with the begin and the size of nearly equal pieces.
template <class Run>
void split(int64_t size, int64_t most, Run run) {
  int64_t count = parts_of(size, most);
  for (int64_t i = 0; i < count; ++i) run(size * i / count, size * (i + 1) / count - size * i / count);
}

// Adds to sum [channels][d_row] the products of `count` tiles: v [count][v_row] transposed times d [count][d_row].
inline void correlate(const float* v, int64_t v_row, int64_t channels, const float* d, int64_t d_row, int64_t filters,
                      int64_t count, float* sum) {
  split(parts_of(filters, kWide), kPanels, [&](int64_t j, int64_t wide) {
    split(channels, kTall, [&](int64_t i, int64_t tall) {
      Versions<Correlate, Correlation>::run(
          tall, wide, {v + i, v_row, d + j * kWide, d_row, count, sum + i * d_row + j * kWide, d_row});
    });
  });
}

// How the kernel's gradient is divided: each of `down` x `across` threads sums all tiles of some channels and filters
// of a group, so that no sum is made across threads.
struct Division {
  explicit Division(const Layer& l)
      : across(std::min<int64_t>(omp_get_max_threads(), panels(l))),
        down(std::max<int64_t>(1, std::min(omp_get_max_threads() / across, l.in.channels / kLanes))),
        depth(parts_of(l.in.channels / kLanes, down) * kLanes),
        width(parts_of(panels(l), across) * kWide) {}
  int64_t across, down, depth, width;
};

template <class T>
struct Part {
  const T *x, *dy;  // the first numbers of its channels and of its filters
  T* dkernel;
  int64_t channels, filters;
};

// Calls `run` for each part with numbers that are zero, as many as the part has channels or filters, and `size` numbers
// of its own.
template <class T, class Run>
void divide(const Layer& l, const Division& by, Turn& turn, int64_t size, const T* x, const T* dy, T* dkernel,
            Run run) {
  int64_t most = odd_lines(std::max(by.depth, by.width));
  float* zeros = reinterpret_cast<float*>(turn.scratch((most + omp_get_max_threads() * size) * sizeof(float)));
  std::fill_n(zeros, most, 0.0f);
#pragma omp parallel for schedule(static, 1)
  for (int64_t index = 0; index < l.groups * by.down * by.across; ++index) {
    int64_t group = index / (by.down * by.across), c = index / by.across % by.down * by.depth;
    int64_t k = index % by.across * by.width, filter = group * l.out.channels + k;
    Part<T> part = {x + group * l.in.channels + c, dy + filter, dkernel + c * l.input + filter,
                 std::min(by.depth, l.in.channels - c), std::min(by.width, l.out.channels - k)};
    if (part.channels > 0 && part.filters > 0) run(part, zeros, zeros + most + omp_get_thread_num() * size);
  }
}

}  // namespace
}  // namespace cnnjax
