// What the kernels are called with: the same for every backend below the operators, and free of PyTorch.
#pragma once

#include "../local_relation.h"

namespace robust_lr::cuda {

// A tensor [N, C, H, W] with its strides in elements, or null.
template <class T>
struct Image {
  T* data;
  Index batch, channel, row, column;
};

template <class T, class A>  // A: what logits and sums are computed in
struct ForwardArguments {
  Problem p;
  Image<const T> x, q, k;
  const A* geo;  // [groups, K, K], or null
  Image<T> y;
  A* lse;  // [N, groups, Ho, Wo], the base 2 logarithm of the softmax's total, or null without softmax
};

template <class T, class A>
struct BackwardArguments {
  Problem p;
  Image<const T> dy, x, q, k;
  const A *geo, *lse;
  Image<T> dx, dq, dk;
  A* dgeo;  // [groups, K, K], or null where it is not wanted
  // Scratch: the softmax-weighted mean of dot(dy, x) over each window [N, groups, Ho, Wo], or null without softmax, and
  // parts of the prior's gradient, [dgeo_parts, groups, K, K].
  A *mean, *dgeo_partial;
};

}  // namespace robust_lr::cuda
