// Channel transforms of the stem's values, which give queries and keys, and their gradients. Here a vector holds
// neighboring pixels of a row.
#pragma once

#include "stem.h"

namespace robust_lr::cpu {

// A channel transform at every `stride`-th row and column.
template <class A>
struct Projection {
  Index rows, stride;
  const A* weights;  // [channels, padded()]
  Image<A> out;      // [N, rows, pixels], neighbors in memory; or its gradient

  // Number of rows, rounded up to a multiple of eight.
  Index padded() const { return (rows + 7) / 8 * 8; }
};

// Processes one row of one image at a time.
template <class A>
class Projector {
  static constexpr int L = kLanes<A>, kRows = 8, kPixels = 2 * L;
  using V = Vec<A>;

 public:
  static constexpr int kVectors = 2;

  Projector(const Stem<A>& stem, const Problem& p) : stem(stem), p(p) {}

  void run(const Projection<A>& to, Index n, Index h) const {
    if (h % to.stride != 0) return;
    with_inputs(stem.inputs, [&](auto inputs) {
      constexpr int kInputs = decltype(inputs)::value;
      each_piece<kInputs>(to, n, h, [&](const auto& image, Index, Index at, Index count) {
        for (Index r = 0; r < to.rows; r += kRows) {
          V sums[kRows][kVectors] = {};
          for (Index c = 0; c < p.channels; ++c) {
            const A* const weights = to.weights + c * to.padded() + r;
            for (int v = 0; v < kVectors; ++v) {
              const V x = relu(before_relu<kInputs>(image[v], stem.transform + c * (kInputs + 1)));
#pragma GCC unroll 8
              for (int i = 0; i < kRows; ++i) sums[i][v] += weights[i] * x;
            }
          }
          for (Index i = 0; i < std::min<Index>(kRows, to.rows - r); ++i)
            std::memcpy(plane(to.out, n, r + i) + at, sums[i], count * sizeof(A));
        }
      });
    });
  }

  // Adds to the gradient of the image, if it is needed, and to the gradients, in lanes, of the transform
  // [channels, inputs + 1] and the weights [channels, padded], if they are not null. `dout` is scratch memory for
  // [padded, kVectors].
  void run_backward(const Projection<A>& from, Index n, Index h, V* dtransform, V* dweights, V* dout) const {
    if (h % from.stride != 0) return;
    with_inputs(stem.inputs, [&](auto inputs) {
      constexpr int kInputs = decltype(inputs)::value;
      each_piece<kInputs>(from, n, h, [&](const auto& image, Index first, Index at, Index count) {
        std::fill(dout, dout + from.padded() * kVectors, V{});
        for (Index r = 0; r < from.rows; ++r)
          std::memcpy(dout + r * kVectors, plane(from.out, n, r) + at, count * sizeof(A));
        V dimage[kVectors][kInputs] = {};
        for (Index c = 0; c < p.channels; ++c) {
          const A* const weights = from.weights + c * from.padded();
          const A* const transform = stem.transform + c * (kInputs + 1);
          V dx[kVectors] = {}, x[kVectors], sums[kInputs + 1] = {};
          for (Index r = 0; r < from.padded(); ++r)
            for (int v = 0; v < kVectors; ++v) dx[v] += weights[r] * dout[r * kVectors + v];
          for (int v = 0; v < kVectors; ++v) {
            const V z = before_relu<kInputs>(image[v], transform);
            const V dz = relu_gradient(z, dx[v]);
            x[v] = relu(z);
            for (int j = 0; j < kInputs; ++j) {
              dimage[v][j] += transform[j] * dz;
              sums[j] += dz * image[v][j];
            }
            sums[kInputs] += dz;
          }
          if (dtransform == nullptr) continue;
          for (int j = 0; j <= kInputs; ++j) dtransform[c * (kInputs + 1) + j] += sums[j];
          for (Index r = 0; r < from.rows; ++r)
            for (int v = 0; v < kVectors; ++v) dweights[c * from.padded() + r] += dout[r * kVectors + v] * x[v];
        }
        if (stem.dimage.data == nullptr) return;
        for (int j = 0; j < kInputs; ++j) {
          A* const to = plane(stem.dimage, n, j) + first;
          for (Index i = 0; i < count; ++i) to[i * from.stride] += dimage[i / L][j][i % L];
        }
      });
    });
  }

 private:
  static A* plane(const Image<A>& image, Index n, Index channel) {
    return static_cast<A*>(image.data) + n * image.batch_stride + channel * image.channel_stride;
  }

  // Calls f(vectors of the image, their first pixel, the first pixel of `out`, count) along a row; the pixels after the
  // last are zeros.
  template <int kInputs, class F>
  void each_piece(const Projection<A>& projection, Index n, Index h, F f) const {
    const Index stride = projection.stride, width = (p.width + stride - 1) / stride;
    for (Index w = 0; w < width; w += kPixels) {
      const Index count = std::min<Index>(kPixels, width - w), first = h * p.width + w * stride;
      V image[kVectors][kInputs];
      for (int j = 0; j < kInputs; ++j) {
        const A* const from = plane(stem.image, n, j) + first;
        A pixels[kPixels] = {};
        for (Index i = 0; i < count; ++i) pixels[i] = from[i * stride];
        for (int v = 0; v < kVectors; ++v) image[v][j] = load_unaligned(pixels + v * L);
      }
      f(image, first, h / stride * width + w, count);
    }
  }

  const Stem<A> stem;
  const Problem p;
};

}  // namespace robust_lr::cpu
