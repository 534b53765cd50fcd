// Arguments of the kernels. Neither PyTorch nor CUDA is needed to read this.
#pragma once

#include <type_traits>

#include "../../problem.h"

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
  using Scalar = std::remove_const_t<T>;  // the type of queries and keys if this image holds the values
  using Gradient = Image<Scalar>;

  T* data;
  Index batch, channel, row, column;
  int bytes;  // width of an access that is aligned at every group's first channel: 16, 8, or one element's
};

// Returns true if the pixels that a block works on (little more than a hundred rows) are within 2 GiB of each other.
template <class T>
bool are_close(const Image<T>& image) {
  constexpr Index kFarthest = Index(1) << 24;
  return image.row * Index(sizeof(T)) <= kFarthest && image.column * Index(sizeof(T)) <= kFarthest;
}

// Where the gradient of the stem's values goes: the general kernels write it to memory; the strip kernels pass it on to
// the image and the transform and write these gradients in parts, to be added up. Null where a result is not wanted.
template <class A>
struct StemGradient {
  Image<A> values;  // [N, C, H, W]
  A* image;         // [parts, N, inputs, H, W]
  A* transform;     // [parts, C, inputs + 1]
  // The weights that make the keys, of type T; null if gradients of weights are wanted. With them a kernel may add the
  // keys' contribution to the image's gradient (Parts::keys); it then writes no gradient of the keys.
  const void* key_weights;
};

// The values of LR-Net's stem, x = relu(transform * (image, 1)). Kernels compute them where they need them and never
// write them to global memory: at full resolution they are many times larger than the image.
template <class A>
struct Stem {
  using Scalar = A;
  using Gradient = StemGradient<A>;

  const A* image;      // [N, inputs, H, W]
  const A* transform;  // [C, inputs + 1], the bias last
  int inputs;
};

// X is where the values come from: an Image in memory, or a Stem that they are computed from.
template <class T, class X = Image<const T>>
struct ForwardArguments {
  using A = WideOf<T>;
  Problem p;
  X x;
  Image<const typename X::Scalar> q, k;
  const A* geo;  // [groups, K, K], or null
  Image<T> y;
  A* lse;  // [N, groups, Ho, Wo], the logarithm of the softmax's total, or null without softmax
};

// The values of a query that the kernels over keys read, besides dy.
template <class A>
struct alignas(16) Query {
  A q;
  A lse;     // the logarithm of the softmax's total, to base 2
  A excess;  // log2 of the window's sum of 2^(logit - lse): 0, except for the rounding of lse
  A mean;    // the weighted mean of dot(dy, x)
};

template <class T, class X = Image<const T>>
struct BackwardArguments {
  using A = WideOf<T>;
  Problem p;
  Image<const T> dy;
  X x;
  Image<const typename X::Scalar> q, k;
  Image<const T> y;
  const A *geo, *lse;
  typename X::Gradient dx;
  Image<typename X::Scalar> dq, dk;
  A* dgeo;            // [groups, K, K], or null where it is not wanted
  Query<A>* queries;  // scratch: [N, Ho, Wo, groups]
  A* dgeo_partial;    // [parts, groups, K, K], or null
};

// In how many parts the kernels leave gradients that are sums: `pixels` parts of sums over pixels (for the prior and
// the stem's transform), `groups` parts of the sum over groups (for the stem's image; 0 if they write the gradient of
// the values instead). `keys` is true if the gradient of the image already includes the keys' contribution.
struct Parts {
  Index pixels, groups;
  bool keys;
};

// The stem's image is contiguous, so its rows are no further apart than its width.
template <class A>
bool are_close(const Stem<A>&) {
  return true;
}
template <class A>
bool are_close(const StemGradient<A>&) {
  return true;
}

template <class T, class X>
bool are_close(const ForwardArguments<T, X>& a) {
  return are_close(a.x) && are_close(a.q) && are_close(a.k) && are_close(a.y);
}
template <class T, class X>
bool are_close(const BackwardArguments<T, X>& a) {
  return are_close(a.dy) && are_close(a.x) && are_close(a.q) && are_close(a.k) && are_close(a.y) && are_close(a.dx) &&
         are_close(a.dq) && are_close(a.dk);
}

// Defined in a file for each type.
template <class T, class X>
void run_forward(const ForwardArguments<T, X>& arguments, Stream stream);

template <class T, class X>
void run_backward(const BackwardArguments<T, X>& arguments, Stream stream);

template <class T, class X>
Parts parts_of(const BackwardArguments<T, X>& arguments);

// Adds up parts [count, entries] into sums [entries]; may overwrite the parts.
template <class A>
void run_sum(A* parts, Index count, Index entries, A* sums, Stream stream);

}  // namespace robust_lr::cuda
