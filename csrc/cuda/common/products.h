// Matrix products of a warp on tensor cores: [16, 16] x [16, 8], of bfloat16 with sums in float.
//
// A lane has elements of each matrix. With `line = lane / 4` and `pair = lane % 4` these are
//
//     left   rows line and line + 8, columns 2 pair, 2 pair + 1 and 2 pair + 8, 2 pair + 9
//     right  rows 2 pair, 2 pair + 1 and 2 pair + 8, 2 pair + 9, column line
//     sums   rows line and line + 8, columns 2 pair, 2 pair + 1
//
// so the sums of two products side by side, narrowed to bfloat16, form the left matrix of another product.
#pragma once

#include "elements.h"

namespace robust_lr::cuda {

__device__ inline int lane_line() { return threadIdx.x % 32 / 4; }
__device__ inline int lane_pair() { return threadIdx.x % 4; }

struct LeftMatrix {
  unsigned words[4];  // (line, left half), (line + 8, left half), (line, right half), (line + 8, right half)
};
struct RightMatrix {
  unsigned words[2];  // upper half, lower half
};
struct ProductSums {
  float values[4];  // two of row `line`, two of row `line + 8`
};

// sums += left * right, for matrices of bfloat16.
__device__ inline void multiply(ProductSums& sums, const LeftMatrix& left, const RightMatrix& right) {
#ifdef __CUDACC__
  float* const d = sums.values;
  const unsigned *const a = left.words, *const b = right.words;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  shim::multiply(sums.values, left.words, right.words);
#endif
}

__device__ inline float from_lane(float v, int lane) {
  unsigned bits;
  memcpy(&bits, &v, sizeof bits);
  bits = __shfl_sync(0xffffffff, bits, lane);
  memcpy(&v, &bits, sizeof v);
  return v;
}

// A float as the sum of two bfloat16: its upper half, and the rest, which loses only the float's last bits to rounding.
// Products of both parts are exact enough for sums of a few floats. The rest of an infinite value is NaN, and so is
// every result that it contributes to.
__device__ inline float upper_part(float v) {
  unsigned bits;
  memcpy(&bits, &v, sizeof bits);
  bits &= 0xffff0000u;
  memcpy(&v, &bits, sizeof v);
  return v;
}
__device__ inline unsigned pack_parts(float v) {
  const float upper = upper_part(v);
  return pack(upper, v - upper);
}

}  // namespace robust_lr::cuda
