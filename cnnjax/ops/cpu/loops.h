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

CNNJAX_INLINE void narrow(float wide, float& value) { value = wide; }

CNNJAX_INLINE void narrow(float wide, BFloat16& value) {
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  value.bits = static_cast<uint16_t>(wide != wide ? (bits >> 16) | 0x40 : rounded);
}

}  // namespace cnnjax
