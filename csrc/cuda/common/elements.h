// Elements in memory and in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "arguments.h"

namespace robust_lr::cuda {

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(Half v) { return __half2float(v); }
__device__ inline float widen(BFloat16 v) { return __bfloat162float(v); }

__device__ inline void narrow(float v, float* to) { *to = v; }
__device__ inline void narrow(double v, double* to) { *to = v; }
__device__ inline void narrow(float v, Half* to) { *to = __float2half_rn(v); }
__device__ inline void narrow(float v, BFloat16* to) { *to = __float2bfloat16_rn(v); }

__device__ inline double power_of_two(double v) { return exp2(v); }
__device__ inline float power_of_two(float v) {
#ifdef __CUDA_ARCH__
  // One instruction. Unlike exp2f it flushes denormal results to zero, which makes no difference to the sums here.
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return exp2f(v);
#endif
}

// For a 16-bit T a single approximate instruction each.
template <class T>
__device__ float reciprocal(float v) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
    return result;
  }
#endif
  return 1 / v;
}
template <class T>
__device__ float logarithm_of_two(float v) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
    return result;
  }
#endif
  return log2f(v);
}

// exp(v) / 2^excess.
template <class A>
__device__ A exponential(A v, A excess = 0) {
  return power_of_two(v * A(kLog2e) - excess);
}

// exp(v) / 2^(less + rest). The fused multiply-add does not round the product. The rounding error of `less`, which may
// be as large as v, is common to all weights of a window, so their sum corrects it.
__device__ inline float exponential_less(float v, float less) { return power_of_two(fmaf(v, float(kLog2e), -less)); }
__device__ inline float exponential_less(float v, float less, float rest) {
  return power_of_two(fmaf(v, float(kLog2e), -less) - rest);
}

// Always summed in this order, so that equal vectors have equal products.
__device__ inline float dot(const float (&a)[kChannels], const float (&b)[kChannels]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum += a[c] * b[c];
  return sum;
}

// start + dot(a, b). For a 16-bit T the sum continues from `start`: rounding at each step is far finer than T's own.
// For a wider T the product is exactly the one that `dot` returns, so that adding its negative gives zero.
template <class T>
__device__ float dot_from(float start, const float (&a)[kChannels], const float (&b)[kChannels]) {
  if (sizeof(T) > 2) return dot(a, b) + start;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) start += a[c] * b[c];
  return start;
}

// Keeps NaN, as PyTorch's ReLU does. Gradients do so too: they are zero only where the value is zero, not where it is
// NaN.
__device__ inline double relu(double z) { return z < 0 ? 0. : z; }
__device__ inline float relu(float z) {
#ifdef __CUDA_ARCH__
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(z));
  return result;
#else
  return z < 0 ? 0.f : z;
#endif
}

// Two values in a word, as bfloat16: the first in its lower half.
__device__ inline unsigned pack(float first, float second) {
  unsigned word;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#else
  BFloat16 elements[2];
  narrow(first, &elements[0]), narrow(second, &elements[1]);
  memcpy(&word, elements, sizeof word);
#endif
  return word;
}

// The two bfloat16 of a word. Each is the upper half of a float, so that one instruction widens it.
__device__ inline void unpack(unsigned word, float& first, float& second) {
  const unsigned low = word << 16, high = word & 0xffff0000u;
  memcpy(&first, &low, sizeof low), memcpy(&second, &high, sizeof high);
}

// The ReLU of two values, packed into a word as T.
template <class T>
__device__ unsigned pack_relu(float first, float second) {
  unsigned word;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  }
#else
  T elements[2];
  narrow(relu(first), &elements[0]), narrow(relu(second), &elements[1]);
  memcpy(&word, elements, sizeof word);
#endif
  return word;
}

// Widens the channels of a group from the type that they have in memory.
template <class T>
__device__ void widen_channels(const T (&from)[kChannels], WideOf<T> (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) to[c] = widen(from[c]);
}
__device__ inline void widen_channels(const BFloat16 (&from)[kChannels], float (&to)[kChannels]) {
  unsigned words[kChannels / 2];
  memcpy(words, from, sizeof words);
#pragma unroll
  for (int i = 0; i < kChannels / 2; ++i) unpack(words[i], to[2 * i], to[2 * i + 1]);
}

// Copies the channels of a group, widening them where the types differ.
template <class T>
__device__ void convert_channels(const T (&from)[kChannels], T (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) to[c] = from[c];
}
template <class T>
__device__ void convert_channels(const T (&from)[kChannels], WideOf<T> (&to)[kChannels])
  requires(!std::is_same_v<T, WideOf<T>>)
{
  widen_channels(from, to);
}

template <class T>
__device__ void narrow_channels(const WideOf<T> (&from)[kChannels], T (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) narrow(from[c], &to[c]);
}
__device__ inline void narrow_channels(const float (&from)[kChannels], BFloat16 (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; c += 2) {
    const unsigned word = pack(from[c], from[c + 1]);
    memcpy(&to[c], &word, sizeof word);
  }
}

// The ReLU of the channels of a group, narrowed to the type that they have in memory.
template <class T>
__device__ void narrow_relu(const float (&from)[kChannels], T (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) narrow(relu(from[c]), &to[c]);
}
__device__ inline void narrow_relu(const float (&from)[kChannels], BFloat16 (&to)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; c += 2) {
    const unsigned word = pack_relu<BFloat16>(from[c], from[c + 1]);
    memcpy(&to[c], &word, sizeof word);
  }
}

// 8 channels in memory, in pieces of 16 bytes.
template <class T>
struct Piece {
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kCount = kChannels / kElements;
  alignas(16) T elements[kElements];
};

}  // namespace robust_lr::cuda
