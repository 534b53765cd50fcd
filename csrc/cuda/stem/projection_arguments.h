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
  Image<A> dx;       // a gradient of the values from elsewhere to take along, at stride 1; or no data
  int rows, stride, height, width;
};

// Number of parts of the gradients of weights and transform: of the pixels, and of the rows.
template <class T>
Index pixel_parts(const Projection<T>& projection);
template <class T>
Index row_parts(const Projection<T>& projection);

// Defined in a file for each type.
template <class T>
void run_projection(const Projection<T>& projection, Stream stream);

// Adds up `parts` [count, N, inputs, H, W], which may be dimage itself, and the projection's part of the gradient of
// the image, at the projection's pixels.
template <class T>
void run_image_gradient(const Projection<T>& projection, const WideOf<T>* parts, Index count, WideOf<T>* dimage,
                        Stream stream);

// Gradients of the weights [pixel_parts, rows, channels], and of the transform [pixel_parts * row_parts, channels,
// inputs + 1].
template <class T>
void run_weights_gradient(const Projection<T>& projection, WideOf<T>* dweights, WideOf<T>* dtransform, Stream stream);

}  // namespace robust_lr::cuda
