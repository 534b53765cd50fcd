// What the kernels are called with. Neither PyTorch nor CUDA is needed to read this.
#pragma once

#include <type_traits>

#include "../local_relation.h"

struct CUstream_st;
struct __half;
struct __nv_bfloat16;

namespace robust_lr::cuda {

using Stream = CUstream_st*;
using Half = __half;
using BFloat16 = __nv_bfloat16;

// The type that elements of type T are computed in.
template <class T>
using WideOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A tensor [N, C, H, W] with its strides in elements.
template <class T>
struct Image {
  T* data;
  Index batch, channel, row, column;
  int bytes;  // how many may be moved at once from any group's first channel on: 16, 8, or one element's
};

template <class T>
struct ForwardArguments {
  using A = WideOf<T>;
  Problem p;
  Image<const T> x, q, k;
  const A* geo;  // [groups, K, K], or null
  Image<T> y;
  A* lse;  // [N, groups, Ho, Wo], the logarithm of the softmax's total, or null without softmax
};

template <class T>
struct BackwardArguments {
  using A = WideOf<T>;
  Problem p;
  Image<const T> dy, x, q, k, y;
  const A *geo, *lse;
  Image<T> dx, dq, dk;
  A* dgeo;  // [groups, K, K], or null where it is not wanted
  // Scratch. Of each window [N, groups, Ho, Wo], or null without softmax: the weighted mean of dot(dy, x), and the base 2
  // logarithm of the sum of exp(logit - lse), which is 0 but for the rounding of lse.
  A *mean, *excess;
  A* dgeo_partial;  // [dgeo_parts, groups, K, K], or null
};

// Defined in a file for each type.
template <class T>
void run_forward(const ForwardArguments<T>& arguments, Stream stream);

template <class T>
void run_backward(const BackwardArguments<T>& arguments, Stream stream);

// How many parts of the prior's gradient there will be.
template <class T>
Index dgeo_parts(const BackwardArguments<T>& arguments);

}  // namespace robust_lr::cuda
