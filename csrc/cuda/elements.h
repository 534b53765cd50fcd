// Element types, and the types that they are computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace robust_lr::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

template <class T>
struct Wide {
  using Type = float;
};
template <>
struct Wide<double> {
  using Type = double;
};
template <class T>
using WideOf = typename Wide<T>::Type;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(Half v) { return __half2float(v); }
__device__ inline float widen(BFloat16 v) { return __bfloat162float(v); }

__device__ inline void narrow(float v, float* to) { *to = v; }
__device__ inline void narrow(double v, double* to) { *to = v; }
__device__ inline void narrow(float v, Half* to) { *to = __float2half_rn(v); }
__device__ inline void narrow(float v, BFloat16* to) { *to = __float2bfloat16_rn(v); }

__device__ inline double exponential(double v) { return exp2(v); }
__device__ inline float exponential(float v) {
#ifdef __CUDA_ARCH__
  // One instruction: unlike exp2f it makes denormal results zero, which no sum here can tell from what they are.
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
#else
  return exp2f(v);
#endif
}

// 8 channels of one group at one pixel: what a thread of the strip kernels works on at a time.
constexpr int kChannels = 8;

// The same in memory, in pieces of 16 bytes.
template <class T>
struct Piece {
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kCount = kChannels / kElements;
  alignas(16) T elements[kElements];
};

}  // namespace robust_lr::cuda
