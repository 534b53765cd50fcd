// Launches the kernels of channel transforms of the stem's values.
#pragma once

#include "../common/launch.h"
#include "projection.h"
#include "projection_arguments.h"
#include "projection_weights.h"

namespace robust_lr::cuda {

// Blocks of an image.
template <class T>
int pixel_blocks(const Projection<T>& f) {
  return int(ceil_div(Index(f.height) * f.width, kPixels * kProjectionThreads));
}

template <class T>
int spans(const Projection<T>& f) {
  return int(ceil_div(Index(f.height) * f.width, kSpan));
}

template <class T>
Index pixel_parts(const Projection<T>& f) {
  return f.p.batch * spans(f);
}

template <class T>
Index row_parts(const Projection<T>& f) {
  return ceil_div(f.rows, kChannels);
}

template <class T>
void run_projection(const Projection<T>& f, Stream stream) {
  const int rows = int(row_parts(f)), pixels = pixel_blocks(f);
  launch(project<T>, f.p.batch * pixels * rows, kProjectionThreads, kTable * sizeof(Channel<WideOf<T>>), stream, f,
         pixels, rows);
}

template <class T>
void run_image_gradient(const Projection<T>& f, const WideOf<T>* parts, Index count, WideOf<T>* dimage, Stream stream) {
  const int pixels = pixel_blocks(f);
  launch(image_gradient<T>, f.p.batch * pixels, kProjectionThreads, kTable * sizeof(Channel<WideOf<T>>), stream, f,
         pixels, parts, int(count), dimage);
}

template <class T>
void run_weights_gradient(const Projection<T>& f, WideOf<T>* dweights, WideOf<T>* dtransform, Stream stream) {
  const int rows = int(row_parts(f));
  const Index channels = ceil_div(f.p.channels, 32 * kOwnChannels);
  launch(weights_gradient<T>, pixel_parts(f) * rows * channels, kProjectionThreads, kWeightsBytes<WideOf<T>>, stream, f,
         spans(f), rows, dweights, dtransform);
}

}  // namespace robust_lr::cuda
