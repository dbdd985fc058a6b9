// exp of numbers up to 0, and the activations made of it, as loops that the compiler turns into vector code.
#pragma once

#include <cmath>

#include "loops.h"

namespace cnnjax {

// exp(x) for x <= 0 to 2e-7 of it; 0 below the smallest float32 of full precision; NaN stays.
CNNJAX_INLINE float exp_of(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added to a number, it leaves its integer in the last bits
  float kept = x < -87.0f ? -87.0f : x;
  float shifted = kept * 1.44269504f + kRound;
  float whole = shifted - kRound;
  float r = kept - whole * 0.693359375f + whole * 2.12194440e-4f;
  float value = 1 + r * (1 + r * (0.5f + r * (1.6666667e-1f + r * (4.1666543e-2f + r * (8.3342e-3f + r * 1.3929e-3f)))));
  uint32_t power, bits;
  std::memcpy(&power, &shifted, sizeof power);
  std::memcpy(&bits, &value, sizeof bits);
  bits += power << 23;
  std::memcpy(&value, &bits, sizeof value);
  return x < -87.0f ? 0.0f : x != x ? x : value;
}

// Of the normal distribution: the density and the probability of less than x (Abramowitz, Stegun 1964, 7.1.26).
struct Normal {
  float density, below;
};

CNNJAX_INLINE Normal normal_of(float x) {
  float size = std::fabs(x) * 0.70710678f, tail = exp_of(-size * size);
  float t = 1 / (1 + 0.3275911f * size);
  float beyond = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  beyond *= 0.5f * tail;
  return {0.39894228f * tail, x < 0 ? beyond : 1 - beyond};
}

CNNJAX_INLINE float sigmoid_of(float x) {
  float e = exp_of(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1 + e);
}

// x times the probability, and the derivative.
struct Gelu {
  static CNNJAX_INLINE float value(float x) { return x * normal_of(x).below; }
  static CNNJAX_INLINE float slope(float x) {
    Normal normal = normal_of(x);
    return normal.below + x * normal.density;
  }
};

struct Silu {
  static CNNJAX_INLINE float value(float x) { return x * sigmoid_of(x); }
  static CNNJAX_INLINE float slope(float x) {
    float gate = sigmoid_of(x);
    return gate * (1 + x * (1 - gate));
  }
};

}  // namespace cnnjax
