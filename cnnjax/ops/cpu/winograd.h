// The transformations of Winograd's method on vectors of AVX2, for 3x3 and 5x5 windows and tiles of 6x6 inputs
// (Lavin and Gray 2016, section 4.1).
//
// The outputs are A' [(G w) * (B' d)] with the matrices of Toom and Cook for the points 0, 3/4, -3/4, 3/2, -3/2 and
// infinity; the gradients take the transposes. Symmetric points need fewer operations, and these round less than the
// paper's (0, 1, -1, 2, -2; on the choice: Barabasz et al. 2020).
#pragma once

#include <immintrin.h>

#define CNNJAX_AVX2 __attribute__((target("avx2,fma")))
#define CNNJAX_INLINE CNNJAX_AVX2 __attribute__((always_inline)) inline

namespace cnnjax {
namespace {

constexpr int kSide = 6, kPoints = kSide * kSide;
constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

using Vector = __m256;
CNNJAX_INLINE Vector all(float value) { return _mm256_set1_ps(value); }

// The three steps and the transposes of two of them in one dimension, from every `stride`-th vector to every `to`-th.
CNNJAX_INLINE void input_step(const Vector* d, int stride, Vector* v, int to) {
  Vector d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  Vector even_a = d4 - all(kB2) * d2, odd_a = all(kA) * (d3 - all(kB2) * d1);
  Vector even_b = d4 - all(kA2) * d2, odd_b = all(kB) * (d3 - all(kA2) * d1);
  v[0] = all(kA2 * kB2) * d0 - all(kA2 + kB2) * d2 + d4;
  v[to] = even_a + odd_a;
  v[2 * to] = even_a - odd_a;
  v[3 * to] = even_b + odd_b;
  v[4 * to] = even_b - odd_b;
  v[5 * to] = all(kA2 * kB2) * d1 - all(kA2 + kB2) * d3 + d5;
}

template <int kWindow>
CNNJAX_INLINE void kernel_step(const Vector* w, int stride, Vector* u, int to) {
  constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
  Vector w0 = w[0], w1 = w[stride], w2 = w[2 * stride];
  Vector even_a = w0 + all(kA2) * w2, odd_a = all(kA) * w1, even_b = w0 + all(kB2) * w2, odd_b = all(kB) * w1;
  if (kWindow == 5) {
    Vector w3 = w[(kWindow - 2) * stride], w4 = w[(kWindow - 1) * stride];
    even_a += all(kA2 * kA2) * w4, odd_a += all(kA2 * kA) * w3;
    even_b += all(kB2 * kB2) * w4, odd_b += all(kB2 * kB) * w3;
  }
  u[0] = all(1 / (kA2 * kB2)) * w0;
  u[to] = all(a) * (even_a + odd_a);
  u[2 * to] = all(a) * (even_a - odd_a);
  u[3 * to] = all(b) * (even_b + odd_b);
  u[4 * to] = all(b) * (even_b - odd_b);
  u[5 * to] = w[(kWindow - 1) * stride];
}

template <int kWindow>
CNNJAX_INLINE void kernel_step_transposed(const Vector* u, int stride, Vector* w, int to) {
  constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
  Vector even_a = all(a) * (u[stride] + u[2 * stride]), odd_a = all(a * kA) * (u[stride] - u[2 * stride]);
  Vector even_b = all(b) * (u[3 * stride] + u[4 * stride]), odd_b = all(b * kB) * (u[3 * stride] - u[4 * stride]);
  w[0] = all(1 / (kA2 * kB2)) * u[0] + even_a + even_b;
  w[to] = odd_a + odd_b;
  w[2 * to] = all(kA2) * even_a + all(kB2) * even_b;
  if (kWindow == 5) {
    w[(kWindow - 2) * to] = all(kA2) * odd_a + all(kB2) * odd_b;
    w[(kWindow - 1) * to] = all(kA2 * kA2) * even_a + all(kB2 * kB2) * even_b;
  }
  w[(kWindow - 1) * to] += u[5 * stride];
}

template <int kWindow>
CNNJAX_INLINE void output_step(const Vector* m, int stride, Vector* y, int to) {
  constexpr int kOut = kSide - kWindow + 1;
  Vector even_a = m[stride] + m[2 * stride], odd_a = all(kA) * (m[stride] - m[2 * stride]);
  Vector even_b = m[3 * stride] + m[4 * stride], odd_b = all(kB) * (m[3 * stride] - m[4 * stride]);
  y[0] = m[0] + even_a + even_b;
  y[to] = odd_a + odd_b;
  if (kOut == 4) {
    y[(kOut - 2) * to] = all(kA2) * even_a + all(kB2) * even_b;
    y[(kOut - 1) * to] = all(kA2) * odd_a + all(kB2) * odd_b;
  }
  y[(kOut - 1) * to] += m[5 * stride];
}

template <int kWindow>
CNNJAX_INLINE void output_step_transposed(const Vector* y, int stride, Vector* m, int to) {
  constexpr int kOut = kSide - kWindow + 1;
  Vector even_a = y[0], even_b = y[0], odd_a = y[stride], odd_b = y[stride];
  if (kOut == 4) {
    even_a += all(kA2) * y[2 * stride], odd_a += all(kA2) * y[(kOut - 1) * stride];
    even_b += all(kB2) * y[2 * stride], odd_b += all(kB2) * y[(kOut - 1) * stride];
  }
  m[0] = y[0];
  m[to] = even_a + all(kA) * odd_a;
  m[2 * to] = even_a - all(kA) * odd_a;
  m[3 * to] = even_b + all(kB) * odd_b;
  m[4 * to] = even_b - all(kB) * odd_b;
  m[5 * to] = y[(kOut - 1) * stride];
}

using Step = void (*)(const Vector*, int, Vector*, int);

// Both dimensions of a square of vectors: kFrom x kFrom to kTo x kTo.
template <int kFrom, int kTo, Step step>
CNNJAX_INLINE void both(const Vector* from, Vector* to) {
  Vector half[kTo * kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) step(from + j, kFrom, half + j, kFrom);
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) step(half + i * kFrom, 1, to + i * kTo, 1);
}

}  // namespace
}  // namespace cnnjax
