// A vector of lanes in GCC's and Clang's vector extensions, which compile to AVX-512, AVX, NEON or SSE.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace robust_lr::cpu {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class A>
inline constexpr int kLanes = kVectorBytes / sizeof(A);

template <class A>
struct VectorOf {
  typedef A Type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VectorOf<A>::Type;

// Constants of a floating type for exp2: its integer twin, mantissa bits, exponent bias and a polynomial.
template <class A>
struct Float;

template <>
struct Float<float> {
  using Int = std::int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  // 2^f on [-1/2, 1/2], minimax in relative error (Remez, ours): 7.5e-8.
  static constexpr float kPowers[] = {1.00000007f,     6.931469671e-1f, 2.402211972e-1f,
                                      5.550713273e-2f, 9.675541331e-3f, 1.327647217e-3f};
};

template <>
struct Float<double> {
  using Int = std::int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  // The same to degree 11: 3.1e-18.
  static constexpr double kPowers[] = {1.0,
                                       6.93147180559945330e-1,
                                       2.40226506959101562e-1,
                                       5.55041086648199215e-2,
                                       9.61812910758833508e-3,
                                       1.33335581467899503e-3,
                                       1.54035304625146130e-4,
                                       1.52527334899609846e-5,
                                       1.32154330894596290e-6,
                                       1.01781980333285277e-7,
                                       7.07410562624565937e-9,
                                       4.43528094461033616e-10};
};

// Half a vector.
template <class A>
struct HalfVectorOf {
  typedef A Type __attribute__((vector_size(kVectorBytes / 2)));
};
template <class A>
using HalfVec = typename HalfVectorOf<A>::Type;

template <class A>
inline HalfVec<A> load_half(const A* from) {
  HalfVec<A> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// The first half of a vector's lanes.
template <class A>
inline HalfVec<A> lower_half(Vec<A> v) {
  HalfVec<A> half;
  std::memcpy(&half, &v, sizeof half);
  return half;
}

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

// Elements in memory order, at any address.
template <class A>
inline Vec<A> load_unaligned(const A* from) {
  Vec<A> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Returns v, which the compiler will not read from memory again wherever it is used.
template <class V>
inline V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// The larger of each lane; b if either is NaN. (GCC compiles the portable form to two instructions.)
template <class A>
inline Vec<A> larger(Vec<A> a, Vec<A> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_max_ps((__m512)a, (__m512)b);
  else
    return (Vec<A>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm256_max_ps((__m256)a, (__m256)b);
  else
    return (Vec<A>)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

template <class A>
inline HalfVec<A> larger_half(HalfVec<A> a, HalfVec<A> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (HalfVec<A>)_mm256_max_ps((__m256)a, (__m256)b);
  else
    return (HalfVec<A>)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

// Returns true if a >= b in every lane; NaN is not.
template <class A>
inline bool all_at_least(Vec<A> a, Vec<A> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGE_UQ) == 0;
  else
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NGE_UQ) == 0;
#elif defined(__AVX__)
  if constexpr (sizeof(A) == 4)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NGE_UQ)) == 0;
  else
    return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_NGE_UQ)) == 0;
#else
  const auto enough = a >= b;
  std::uint64_t words[kVectorBytes / 8], all = ~std::uint64_t(0);
  std::memcpy(words, &enough, sizeof enough);
  for (std::uint64_t word : words) all &= word;
  return all == ~std::uint64_t(0);
#endif
}

// The polynomial for 2^f on [-1/2, 1/2].
template <class A>
Vec<A> power_of_fraction(Vec<A> f) {
  constexpr int degree = sizeof Float<A>::kPowers / sizeof(A) - 1;
  Vec<A> p = broadcast(Float<A>::kPowers[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) p = p * f + Float<A>::kPowers[i];
  return p;
}

// 2^t for t below about 1. Far below 2^-126 it is 0, and imprecise in between; NaN stays NaN. With `kFinite`, 2^-inf
// may be NaN as well, which is faster.
template <class A, bool kFinite = false>
inline Vec<A> exp2(Vec<A> t) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    if (!kFinite) t = larger<A>(broadcast<A>(-200), t);
    const Vec<A> whole = (Vec<A>)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (Vec<A>)_mm512_scalef_ps((__m512)power_of_fraction<A>(t - whole), (__m512)whole);
  }
#endif
  using F = Float<A>;
  using IntVec = Vec<typename F::Int>;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits; the bias turns it into an exponent.
  constexpr A round = A(1.5) * A(typename F::Int(1) << F::kMantissa) + A(F::kBias);
  t = larger<A>(broadcast<A>(-F::kBias), t);
  const Vec<A> shifted = t + round;
  return power_of_fraction<A>(t - (shifted - round)) * (Vec<A>)((IntVec)shifted << F::kMantissa);
}

namespace detail {

// Two-input permutations with constant indices: element i of the result is a[index] or, from L on, b[index - L].
template <class A, int... Index>
inline Vec<A> shuffle(Vec<A> a, Vec<A> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index...);
#else
  return __builtin_shuffle(a, b, Vec<typename Float<A>::Int>{Index...});
#endif
}

// Swaps the off-diagonal S x S blocks of rows r and r + S, for every such pair.
template <class A, int S, int... C>
inline void exchange_blocks(Vec<A>* rows, std::integer_sequence<int, C...>) {
  constexpr int L = kLanes<A>;
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) {
    if (r & S) continue;
    const Vec<A> a = rows[r], b = rows[r + S];
    rows[r] = shuffle<A, ((C & S) ? L + C - S : C)...>(a, b);
    rows[r + S] = shuffle<A, ((C & S) ? L + C : C + S)...>(a, b);
  }
}

template <class A, int S = 1>
inline void transpose_from(Vec<A>* rows) {
  if constexpr (S < kLanes<A>) {
    exchange_blocks<A, S>(rows, std::make_integer_sequence<int, kLanes<A>>());
    transpose_from<A, 2 * S>(rows);
  }
}

}  // namespace detail

// Transposes a square of kLanes x kLanes elements in registers.
template <class A>
inline void transpose(Vec<A> (&rows)[kLanes<A>]) {
  detail::transpose_from<A>(rows);
}

}  // namespace robust_lr::cpu
