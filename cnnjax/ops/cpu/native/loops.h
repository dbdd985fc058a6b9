// Loops over channels that the compiler turns into vector code, once for each generation of processors.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && __GNUC__ >= 12
#define CNNJAX_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CNNJAX_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

// So that a loop becomes part of each of those versions of its caller.
#define CNNJAX_INLINE inline __attribute__((always_inline))

namespace cnnjax {

// The upper half of a float32; rounds to nearest, ties to even, and keeps NaN.
struct BFloat16 {
  uint16_t bits;
};

CNNJAX_INLINE float widen(float value) { return value; }

CNNJAX_INLINE float widen(BFloat16 value) {
  uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

CNNJAX_INLINE float widen(uint8_t value) { return value; }

CNNJAX_INLINE float widen(int8_t value) { return value; }

// The nearest number of that type, ties to even, still as a float32; NaN stays one.
CNNJAX_INLINE float round_as(float wide, const float*) { return wide; }

CNNJAX_INLINE float round_as(float wide, const BFloat16*) {
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  rounded = (wide != wide ? bits | 0x400000 : rounded) & 0xffff0000;
  std::memcpy(&wide, &rounded, sizeof wide);
  return wide;
}

CNNJAX_INLINE void cut(float rounded, float& value) { value = rounded; }

CNNJAX_INLINE void cut(float rounded, BFloat16& value) {
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  value.bits = static_cast<uint16_t>(bits >> 16);
}

template <class T>
CNNJAX_INLINE void narrow(float wide, T& value) {
  cut(round_as(wide, &value), value);
}

}  // namespace cnnjax
