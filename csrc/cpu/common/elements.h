// Elements in memory (float, double, bfloat16) as lanes of a vector, and back.
#pragma once

#include <type_traits>

#include "vec.h"

namespace robust_lr::cpu {

using BFloat16 = std::uint16_t;  // its bits: the upper half of a float

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
  const std::uint32_t bits = std::uint32_t(v) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float v, float* to) { *to = v; }
inline void narrow(double v, double* to) { *to = v; }
inline void narrow(float v, BFloat16* to) {  // to nearest, ties to even
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  *to = v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

#if defined(__AVX512F__)
// Loads the lanes of a mask from bfloat16 in memory; the other lanes are zero.
inline __m512 load_bfloat16(const BFloat16* from, __mmask16 lanes) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16));
}

// Rounds to nearest, ties to even.
inline void store_bfloat16(__m512 v, BFloat16* to, __mmask16 lanes) {
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i kept =
      _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), _mm512_set1_epi32(0x7fc0), rounded);
  _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(kept));
}
#endif

// A run: 16 bytes of consecutive elements of type A, which are moved together.
template <class A>
inline constexpr int kRun = 16 / sizeof(A);

template <class A>
struct RunOf {
  typedef A Type __attribute__((vector_size(16)));
};
template <class A>
using Run = typename RunOf<A>::Type;

template <class A>
inline Run<A> read_run(const A* from) {
  Run<A> run;
  std::memcpy(&run, from, sizeof run);
  return run;
}

template <class A>
inline void write_run(Run<A> run, A* to) {
  std::memcpy(to, &run, sizeof run);
}

typedef BFloat16 NarrowRun __attribute__((vector_size(8)));

template <class A>
inline Run<A> read_run(const BFloat16* from) {
  NarrowRun run;
  std::memcpy(&run, from, sizeof run);
  return (Run<A>)(__builtin_convertvector(run, Run<std::uint32_t>) << 16);
}

template <class A>
inline void write_run(Run<A> run, BFloat16* to) {
  const auto bits = (Run<std::uint32_t>)run;
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto kept = __builtin_convertvector(run == run ? rounded : (rounded & 0) + 0x7fc0, NarrowRun);
  std::memcpy(to, &kept, sizeof kept);
}

// A vector has kLanes / kRun runs; `put` replaces one. (GCC compiles the portable form to several instructions.)
template <class A, int Place>
inline Vec<A> put(Vec<A> v, Run<A> run) {
#if defined(__AVX512F__)
  return (Vec<A>)_mm512_insertf32x4((__m512)v, (__m128)run, Place);
#elif defined(__AVX__)
  return (Vec<A>)_mm256_insertf128_ps((__m256)v, (__m128)run, Place);
#else
  return run;
#endif
}

template <class A, int Place>
inline Run<A> take(Vec<A> v) {
#if defined(__AVX512F__)
  return (Run<A>)_mm512_extractf32x4_ps((__m512)v, Place);
#elif defined(__AVX__)
  return (Run<A>)_mm256_extractf128_ps((__m256)v, Place);
#else
  return v;
#endif
}

namespace detail {

// The lower (or upper) halves of the runs of a and b, element by element in turn.
template <class A, bool kUpper, int... C>
inline Vec<A> interleave(Vec<A> a, Vec<A> b, std::integer_sequence<int, C...>) {
  constexpr int R = kRun<A>;
  return shuffle<A, ((C & 1 ? kLanes<A> : 0) + C / R * R + (kUpper ? R / 2 : 0) + C % R / 2)...>(a, b);
}

}  // namespace detail

// Transposes, for each run, the square of kRun x kRun elements in kRun rows.
template <class A>
inline void transpose_runs(Vec<A> (&rows)[kRun<A>]) {
  constexpr int R = kRun<A>;
  constexpr auto all = std::make_integer_sequence<int, kLanes<A>>();
#pragma GCC unroll 2
  for (int round = 1; round < R; round *= 2) {
    Vec<A> old[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) old[r] = rows[r];
#pragma GCC unroll 2
    for (int r = 0; r < R / 2; ++r) {
      rows[2 * r] = detail::interleave<A, false>(old[r], old[r + R / 2], all);
      rows[2 * r + 1] = detail::interleave<A, true>(old[r], old[r + R / 2], all);
    }
  }
}

}  // namespace robust_lr::cpu
