// The products of a convolution: the memory layout of its elements, and the products that it sums.
#pragma once

#include <algorithm>

#include "../../problem.h"
#include "../common/elements.h"

namespace robust_lr::cpu {

// Elements of float or double, one product at a time.
template <class A>
struct Products {
  using Element = A;
  using Sum = A;
  static constexpr int kStep = 1;  // neighboring channels in a product
  // Whether half a vector takes half the time: AVX-512 in steps of 256 bits does.
  static constexpr bool kHalves = kVectorBytes == 64;

  static Vec<A> pixel(const A* from) { return broadcast(*from); }
  static Vec<A> last_pixel(const A* from, Index) { return broadcast(*from); }
  static Vec<A> weights(const A* from) { return load_unaligned(from); }
  static Vec<A> add(Vec<A> sum, Vec<A> pixel, Vec<A> weights) { return sum + pixel * weights; }

  // Loads the first `lanes` lanes of a vector or half a vector; the others are zero.
  template <class V>
  static V read(const A* from, Index lanes) {
    V v{};
    if (lanes >= Index(sizeof(V) / sizeof(A))) {
      std::memcpy(&v, from, sizeof v);
      return v;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4 && sizeof(V) == 64)
      return (V)_mm512_maskz_loadu_ps(__mmask16((1u << lanes) - 1), from);
    if constexpr (sizeof(A) == 4 && sizeof(V) == 32) return (V)_mm256_maskz_loadu_ps(__mmask8((1u << lanes) - 1), from);
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 4) return (V)_mm256_maskload_ps(from, first_lanes(lanes));
#endif
    std::memcpy(&v, from, lanes * sizeof(A));
    return v;
  }
  template <class V>
  static void write(V v, A* to, Index lanes) {
    if (lanes >= Index(sizeof(V) / sizeof(A))) {
      std::memcpy(to, &v, sizeof v);
      return;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4 && sizeof(V) == 64) {
      _mm512_mask_storeu_ps(to, __mmask16((1u << lanes) - 1), (__m512)v);
      return;
    }
    if constexpr (sizeof(A) == 4 && sizeof(V) == 32) {
      _mm256_mask_storeu_ps(to, __mmask8((1u << lanes) - 1), (__m256)v);
      return;
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 4) {
      _mm256_maskstore_ps(to, first_lanes(lanes), (__m256)v);
      return;
    }
#endif
    std::memcpy(to, &v, lanes * sizeof(A));
  }

#if defined(__AVX2__)
 private:
  static __m256i first_lanes(Index count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
#endif
};

// Elements of bfloat16, two neighboring channels at a time, summed in float. The instructions are written out, since
// processors with AVX-512 may lack them: `supports_bfloat16` tells, and the library is compiled for all.
struct NarrowProducts {
  using Element = BFloat16;
  using Sum = float;
  using V = Vec<float>;
  static constexpr int kStep = 2;
  static constexpr bool kHalves = false;

  static V pixel(const BFloat16* from) {
    std::uint32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (V)broadcast(pair);
  }
  // The product of the `count` remaining channels; a missing second channel is zero.
  static V last_pixel(const BFloat16* from, Index count) {
    return count > 1 ? pixel(from) : (V)broadcast(std::uint32_t(*from));
  }
  static V weights(const BFloat16* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }

#if defined(__AVX512F__)
  template <class>
  static V read(const BFloat16* from, Index lanes) {
    return (V)load_bfloat16(from, first_lanes(lanes));
  }
  static V add(V sum, V pixel, V weights) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(pixel));
    return sum;
  }
  static void write(V v, BFloat16* to, Index lanes) {
    __m256i half;
    asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(v));
    _mm256_mask_storeu_epi16(to, first_lanes(lanes), half);
  }

 private:
  static __mmask16 first_lanes(Index count) { return count >= 16 ? 0xffff : __mmask16((1u << count) - 1); }
#endif
};

// Returns true if this processor has the instructions of `NarrowProducts`, and the library uses vectors of that width.
inline bool supports_bfloat16() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace robust_lr::cpu
