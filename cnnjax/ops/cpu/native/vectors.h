// Vectors of CNNJAX_LANES float32 numbers, which the file that includes this defines, and how bfloat16 (as uint16_t)
// is read into them and rounded from them, to nearest, ties to even.
#pragma once

#include <immintrin.h>

#include <cstdint>

#if defined(CNNJAX_PAIRS)
#define CNNJAX_VECTORS __attribute__((target("avx512f,avx512bf16")))
#elif CNNJAX_LANES == 16
#define CNNJAX_VECTORS __attribute__((target("avx512f")))
#else
#define CNNJAX_VECTORS __attribute__((target("avx2,fma")))
#endif
#define CNNJAX_INLINE CNNJAX_VECTORS __attribute__((always_inline)) inline

namespace cnnjax {
namespace {

constexpr int64_t kLanes = CNNJAX_LANES;

#if CNNJAX_LANES == 16
using Vector = __m512;
CNNJAX_INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }
CNNJAX_INLINE void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
CNNJAX_INLINE Vector all(float value) { return _mm512_set1_ps(value); }
#ifdef CNNJAX_PAIRS  // each number of a and of b is the bits of two of bfloat16
CNNJAX_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#else
CNNJAX_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
#endif
CNNJAX_INLINE Vector load(const uint16_t* from) {
  __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
CNNJAX_INLINE void store(uint16_t* to, Vector value) {
  __m512i bits = _mm512_castps_si512(value), one = _mm512_set1_epi32(1);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#else
using Vector = __m256;
CNNJAX_INLINE Vector load(const float* from) { return _mm256_loadu_ps(from); }
CNNJAX_INLINE void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
CNNJAX_INLINE Vector all(float value) { return _mm256_set1_ps(value); }
CNNJAX_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
CNNJAX_INLINE Vector load(const uint16_t* from) {
  __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
CNNJAX_INLINE void store(uint16_t* to, Vector value) {
  __m256i bits = _mm256_castps_si256(value), one = _mm256_set1_epi32(1);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x88);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(halves));
}
#endif

}  // namespace
}  // namespace cnnjax
