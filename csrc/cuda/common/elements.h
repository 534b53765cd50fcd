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
  // One instruction: unlike exp2f it makes denormal results zero, which no sum here can tell from what they are.
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return exp2f(v);
#endif
}

// exp(v) / 2^excess.
template <class A>
__device__ A exponential(A v, A excess = 0) {
  return power_of_two(v * A(kLog2e) - excess);
}

// Always summed in this order, so that equal vectors have equal products.
__device__ inline float dot(const float (&a)[kChannels], const float (&b)[kChannels]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum += a[c] * b[c];
  return sum;
}

// 8 channels in memory, in pieces of 16 bytes.
template <class T>
struct Piece {
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kCount = kChannels / kElements;
  alignas(16) T elements[kElements];
};

}  // namespace robust_lr::cuda
