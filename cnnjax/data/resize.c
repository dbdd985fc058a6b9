// Resizing of uint8 images with the triangle filter, bit for bit as Pillow does it.
//
// Pillow (BILINEAR) resizes rows, rounds to bytes, and then resizes columns, with weights of 22 bits. Here the
// weights come from the caller and the sums are the same whole numbers; images stay packed (Pillow keeps a
// fourth byte a pixel, so its images are copied in and out), and only the middle square is read.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BITS = 22 };

static inline uint8_t byte(int32_t sum) {
  const int32_t value = sum >> BITS;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE AVX2 __attribute__((always_inline)) static inline

// The sums of one output pixel in two rows, each in its half: red, green, blue and nothing. Four inputs at
// a time, in pairs.
AVX2_INLINE __m256i pixel_avx2(const uint8_t *a, const uint8_t *b, int fours, const int16_t *packed) {
  const __m256i first_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i last_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  __m256i low = _mm256_setzero_si256(), high = low;
  for (int k = 0; k < fours; k++, a += 12, b += 12, packed += 32) {
    const __m256i one = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a));
    const __m256i both = _mm256_inserti128_si256(one, _mm_loadu_si128((const __m128i *)b), 1);
    const __m256i first = _mm256_shuffle_epi8(both, first_two);
    const __m256i second = _mm256_shuffle_epi8(both, last_two);
    __m256i weight[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      weight[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)packed + i));
    low = _mm256_add_epi32(low, _mm256_add_epi32(_mm256_madd_epi16(first, weight[0]),
                                                 _mm256_madd_epi16(second, weight[1])));
    high = _mm256_add_epi32(high, _mm256_add_epi32(_mm256_madd_epi16(first, weight[2]),
                                                   _mm256_madd_epi16(second, weight[3])));
  }
  return _mm256_add_epi32(low, _mm256_slli_epi32(high, 15));
}

// Two rows of three channels, four pixels at once, the last four again where `size` is no multiple of four.
// `packed` [size][fours][2][2][8] holds each pair of weights four times: the lower 15 bits of the two pairs, then the
// upper ones. Both rows must be readable 16 bytes past their end, and what comes out writable 4 bytes past its own.
AVX2_INLINE void rows_of_fours(const uint8_t *a, const uint8_t *b, uint8_t *to_a, uint8_t *to_b, int size,
                               const int32_t *first, int fours, const int16_t *packed) {
  const __m256i packing = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
  const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));
  for (int group = 0; group < size; group += 4) {
    const int x = group + 4 <= size ? group : size - 4;
    __m256i pixels[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const size_t at = 3 * (size_t)first[x + i];
      const __m256i sum = pixel_avx2(a + at, b + at, fours, packed + (size_t)32 * fours * (x + i));
      pixels[i] = _mm256_srai_epi32(_mm256_add_epi32(sum, half), BITS);
    }
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(pixels[0], pixels[1]),
                                              _mm256_packs_epi32(pixels[2], pixels[3]));
    const __m256i done = _mm256_shuffle_epi8(bytes, packing);
    _mm_storeu_si128((__m128i *)(to_a + 3 * x), _mm256_castsi256_si128(done));
    _mm_storeu_si128((__m128i *)(to_b + 3 * x), _mm256_extracti128_si256(done, 1));
  }
}

// With the usual counts of fours as constants, without which the loop over them takes longer than their sums.
AVX2 static void rows_avx2(const uint8_t *a, const uint8_t *b, uint8_t *to_a, uint8_t *to_b, int size,
                           const int32_t *first, int fours, const int16_t *packed) {
  if (fours == 1)
    rows_of_fours(a, b, to_a, to_b, size, first, 1, packed);
  else if (fours == 2)
    rows_of_fours(a, b, to_a, to_b, size, first, 2, packed);
  else
    rows_of_fours(a, b, to_a, to_b, size, first, fours, packed);
}

// `taps` rows to one; returns how many bytes of it are done, the last few being left.
AVX2 static int column_avx2(const uint8_t *const *rows, uint8_t *out, int length, int taps,
                            const int32_t *weight) {
  const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));
  int i = 0;
  for (; i + 16 <= length; i += 16) {
    __m256i a = half, b = half;
    for (int k = 0; k < taps; k++) {
      const __m256i w = _mm256_set1_epi32(weight[k]);
      const __m128i bytes = _mm_loadu_si128((const __m128i *)(rows[k] + i));
      a = _mm256_add_epi32(a, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), w));
      b = _mm256_add_epi32(b, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), w));
    }
    // Packing works within halves of 128 bits: a's and b's four by four, put in order after.
    const __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(a, BITS), _mm256_srai_epi32(b, BITS));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128((__m128i *)(out + i), _mm_packus_epi16(_mm256_castsi256_si128(ordered),
                                                            _mm256_extracti128_si256(ordered, 1)));
  }
  return i;
}
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#else
#define HAS_AVX2 0
#define rows_avx2(...)
#define column_avx2(...) 0
#endif

static void row_of_three(const uint8_t *in, uint8_t *out, int size, const int32_t *first, int taps,
                         const int32_t *weights) {
  for (int x = 0; x < size; x++) {
    const uint8_t *from = in + 3 * first[x];
    int32_t sum[3] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
    for (int k = 0; k < taps; k++, from += 3)
      for (int c = 0; c < 3; c++) sum[c] += from[c] * weights[x * taps + k];
    for (int c = 0; c < 3; c++) out[3 * x + c] = byte(sum[c]);
  }
}

static void row_of_one(const uint8_t *in, uint8_t *out, int size, const int32_t *first, int taps,
                       const int32_t *weights) {
  for (int x = 0; x < size; x++) {
    int32_t sum = 1 << (BITS - 1);
    for (int k = 0; k < taps; k++) sum += in[first[x] + k] * weights[x * taps + k];
    out[x] = byte(sum);
  }
}

static void column(const uint8_t *const *rows, uint8_t *out, int start, int length, int taps,
                   const int32_t *weight) {
  for (int i = start; i < length; i++) {
    int32_t sum = 1 << (BITS - 1);
    for (int k = 0; k < taps; k++) sum += rows[k][i] * weight[k];
    out[i] = byte(sum);
  }
}

// The square of `side` pixels whose first one is `image`, in rows of `stride` bytes, to `size` x `size`.
// `first` and `weights` [size][taps] say for each output pixel where its inputs begin and what they weigh, all of
// them within the square; `packed`: see `rows_avx2`. Returns 0, or -1 where there is no memory.
int cnnjax_middle_square(const uint8_t *image, int64_t stride, int side, int channels, uint8_t *out, int size,
                  const int32_t *first, int taps, const int32_t *weights, const int16_t *packed) {
  const int length = size * channels, wide = side * channels, kept = taps + 1, apart = length + 4;
  const int fast = HAS_AVX2 && channels == 3 && side >= 16 && size >= 4;
  void (*row)(const uint8_t *, uint8_t *, int, const int32_t *, int, const int32_t *) =
      channels == 3 ? row_of_three : row_of_one;
  // The last row goes through a copy, so that reading past a row never leaves the image.
  // Only the rows that one output row needs are kept, in a ring, and one more: two are made at a time.
  uint8_t *ring = malloc((size_t)kept * apart), *last = calloc(wide + 16, 1);
  const uint8_t **rows = malloc(taps * sizeof *rows);
  const int failed = !ring || !last || !rows;
  if (!failed) memcpy(last, image + (side - 1) * stride, wide);
  for (int y = 0, done = first[0]; y < size && !failed; y++) {
    for (; done < first[y] + taps; done += 2) {
      const int next = done + 1 < side ? done + 1 : done;
      const uint8_t *a = done == side - 1 ? last : image + done * stride;
      const uint8_t *b = next == side - 1 ? last : image + next * stride;
      uint8_t *to_a = ring + (size_t)(done % kept) * apart, *to_b = ring + (size_t)(next % kept) * apart;
      if (fast) {
        rows_avx2(a, b, to_a, to_b, size, first, (taps + 3) / 4, packed);
      } else {
        row(a, to_a, size, first, taps, weights);
        row(b, to_b, size, first, taps, weights);
      }
    }
    for (int k = 0; k < taps; k++) rows[k] = ring + (size_t)((first[y] + k) % kept) * apart;
    uint8_t *to = out + (size_t)y * length;
    const int ready = HAS_AVX2 ? column_avx2(rows, to, length, taps, weights + y * taps) : 0;
    column(rows, to, ready, length, taps, weights + y * taps);
  }
  free(ring);
  free(last);
  free(rows);
  return -failed;
}
