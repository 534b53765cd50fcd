// Launches the kernels of channel transforms of the stem's values.
#pragma once

#include "../common/launch.h"
#include "projection.h"
#include "projection_arguments.h"
#include "projection_products.h"
#include "projection_weights.h"

namespace robust_lr::cuda {

// Blocks of an image.
template <class T>
int pixel_blocks(const Projection<T>& f) {
  return int(ceil_div(Index(f.height) * f.width, kPixels * kProjectionThreads));
}

// Returns true if the tensor-core kernels cover the call. They need results laid out as by the stem's operators.
template <class T>
bool fits_products(const Projection<T>& f) {
  return std::is_same_v<T, BFloat16> && f.x.inputs == kProductInputs && f.p.channels <= kProductChannels &&
         f.dx.data == nullptr && f.out.channel == 1 && f.out.column == f.rows && f.out.row == f.width * f.out.column;
}

template <class T>
int product_spans(const Projection<T>& f) {
  return int(ceil_div(Index(f.height) * f.width, kProductSpan));
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
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (fits_products(f)) {
      const int spans = product_spans(f);
      return launch(project_products<T>, f.p.batch * spans * rows, kProjectionThreads, 0, stream, f, spans, rows);
    }
  }
  launch(project<T>, f.p.batch * pixels * rows, kProjectionThreads, kTable * sizeof(Channel<WideOf<T>>), stream, f,
         pixels, rows);
}

template <class T>
void run_image_gradient(const Projection<T>& f, const WideOf<T>* parts, Index count, WideOf<T>* dimage, Stream stream) {
  const int pixels = pixel_blocks(f);
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (fits_products(f) && f.rows <= kChannels) {
      const int spans = product_spans(f);
      return launch(image_gradient_products<T>, f.p.batch * spans, kProjectionThreads, 0, stream, f, spans, parts,
                    int(count), dimage);
    }
  }
  launch(image_gradient<T>, f.p.batch * pixels, kProjectionThreads, kTable * sizeof(Channel<WideOf<T>>), stream, f,
         pixels, parts, int(count), dimage);
}

template <class T>
void run_weights_gradient(const Projection<T>& f, WideOf<T>* dweights, WideOf<T>* dtransform, Stream stream) {
  const int rows = int(row_parts(f));
  const Index channels = ceil_div(f.p.channels, 32 * kOwnChannels);
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (fits_products(f))
      return launch(weights_gradient_products<T>, pixel_parts(f) * rows, kProjectionThreads, kProductBytes, stream, f,
                    spans(f), rows, dweights, dtransform);
  }
  launch(weights_gradient<T>, pixel_parts(f) * rows * channels, kProjectionThreads, kWeightsBytes<WideOf<T>>, stream, f,
         spans(f), rows, dweights, dtransform);
}

}  // namespace robust_lr::cuda
