// Arguments of the kernels of a channel transform of the stem's values.
#pragma once

#include "../common/arguments.h"

namespace robust_lr::cuda {

// A channel transform at every `stride`-th row and column.
template <class T>
struct Projection {
  using A = WideOf<T>;
  Problem p;
  Stem<A> x;
  const T* weights;  // [rows, channels]
  Image<A> out;      // [N, rows, height, width], or its gradient
  Image<A> dx;       // a gradient of the values that is to be added, at stride 1; without data if there is none
  int rows, stride, height, width;
};

// In how many parts the pixels, and the rows of weights, are divided for the gradients of weights and transform.
template <class T>
Index pixel_parts(const Projection<T>& projection);
template <class T>
Index row_parts(const Projection<T>& projection);

// Defined in a file for each type.
template <class T>
void run_projection(const Projection<T>& projection, Stream stream);

// Sets `dimage`, at the projection's pixels only, to the sum of `parts` [count, N, inputs, H, W], which may be dimage
// itself, and the projection's contribution.
template <class T>
void run_image_gradient(const Projection<T>& projection, const WideOf<T>* parts, Index count, WideOf<T>* dimage,
                        Stream stream);

// Gradients of the weights [pixel_parts, rows, channels], and of the transform [pixel_parts * row_parts, channels,
// inputs + 1].
template <class T>
void run_weights_gradient(const Projection<T>& projection, WideOf<T>* dweights, WideOf<T>* dtransform, Stream stream);

}  // namespace robust_lr::cuda
