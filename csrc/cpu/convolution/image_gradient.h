// The gradient of a convolution with respect to an image of few channels. Libraries are slow here, because their
// vectors hold neighboring channels. Here a vector holds the taps of the kernel, and sums are added to the pixels under
// the taps.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/parallel.h"
#include "../common/vec.h"

namespace robust_lr::cpu {

template <class A>
struct ImageConvolution {
  Index batch, channels, height, width;  // of the image
  Index outputs, out_height, out_width;
  Index kernel, stride, padding;
  const A* dy;       // [N, out_height, out_width, outputs]
  const A* weights;  // [outputs, channels, kernel, kernel]
  A* dimage;         // [N, channels, height, width]
};

// Kernels of K x K taps, images of `Channels`.
template <class A, int K, int Channels>
class ImageGradient {
  static constexpr int L = kLanes<A>, kRow = K * Channels, kTaps = K * kRow, kVectors = (kTaps + L - 1) / L;
  static constexpr int kRegisters = kVectorBytes == 64 ? 20 : 8;  // for sums; the others hold a pixel and weights
  static constexpr int kChunk = std::min(kVectors, kRegisters), kPixels = std::min(8, kRegisters / kChunk);
  static constexpr int kPadded = (kVectors + kChunk - 1) / kChunk * kChunk * L;
  using V = Vec<A>;

 public:
  explicit ImageGradient(const ImageConvolution<A>& c) : c(c), weights_(c.outputs * kPadded) {
    for (Index o = 0; o < c.outputs; ++o)
      for (Index j = 0; j < Channels; ++j)
        for (Index tap = 0; tap < K * K; ++tap)
          weights_[o * kPadded + tap * Channels + j] = c.weights[(o * Channels + j) * K * K + tap];
  }

  // Computes rows [first, last) of one image's gradient. Below, rows and columns are those of the padded image.
  void run(Index n, Index first, Index last) const {
    first += c.padding, last += c.padding;
    const Index begin = (std::max<Index>(0, first - K + 1) + c.stride - 1) / c.stride;
    const Index end = std::min(c.out_height, (last - 1) / c.stride + 1);
    const Index top = std::min(first, begin * c.stride), bottom = std::max(last, (end - 1) * c.stride + K);
    const Index columns = std::max(c.width + c.padding, (c.out_width - 1) * c.stride + K);
    std::vector<A> sums((bottom - top) * columns * Channels);
    for (Index h = begin; h < end; ++h) {
      const A* const dy = c.dy + (n * c.out_height + h) * c.out_width * c.outputs;
      A* const to = sums.data() + (h * c.stride - top) * columns * Channels;
      for (Index w = 0; w < c.out_width; w += kPixels) add(dy, w, to, columns * Channels);
    }
    for (Index j = 0; j < Channels; ++j)
      for (Index h = first; h < last; ++h) {
        const A* const from = sums.data() + ((h - top) * columns + c.padding) * Channels + j;
        A* const to = c.dimage + ((n * Channels + j) * c.height + h - c.padding) * c.width;
        for (Index w = 0; w < c.width; ++w) to[w] = from[w * Channels];
      }
  }

 private:
  // Adds the contribution of kPixels of a row of dy, from `w` on, to the rows of the image that begin at `to`.
  void add(const A* dy, Index w, A* to, Index row_stride) const {
    const A* pixels[kPixels];
    for (int i = 0; i < kPixels; ++i) pixels[i] = dy + std::min(w + i, c.out_width - 1) * c.outputs;
    A taps[kPixels][kPadded];
    for (int chunk = 0; chunk < kPadded; chunk += kChunk * L) {
      V sums[kPixels][kChunk] = {};
      for (Index o = 0; o < c.outputs; ++o) {
        const A* const weights = weights_.data() + o * kPadded + chunk;
#pragma GCC unroll 20
        for (int v = 0; v < kChunk; ++v) {
          const V weight = load_unaligned(weights + v * L);
#pragma GCC unroll 8
          for (int i = 0; i < kPixels; ++i) sums[i][v] += weight * pixels[i][o];
        }
      }
      for (int i = 0; i < kPixels; ++i) std::memcpy(taps[i] + chunk, sums[i], sizeof sums[i]);
    }
    const Index count = std::min<Index>(kPixels, c.out_width - w);
    for (Index i = 0; i < count; ++i)
      for (int r = 0; r < K; ++r) {
        A* const place = to + r * row_stride + (w + i) * c.stride * Channels;
        for (int j = 0; j < kRow; ++j) place[j] += taps[i][r * kRow + j];
      }
  }

  const ImageConvolution<A> c;
  std::vector<A> weights_;
};

template <class A, int K, int Channels>
void run_image_gradient(const ImageConvolution<A>& c) {
  const ImageGradient<A, K, Channels> gradient(c);
  // A task is an image or, if there are few images, a band of its rows.
  const Index wanted = c.batch > 0 ? (thread_count() + c.batch - 1) / c.batch : 1;
  const Index rows = std::max<Index>((c.height + wanted - 1) / wanted, K), bands = (c.height + rows - 1) / rows;
  parallel_for(c.batch * bands, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index first = task % bands * rows;
      gradient.run(task / bands, first, std::min(first + rows, c.height));
    }
  });
}

// Runs the kernel for these sizes and returns true; false if there is none.
template <class A>
bool run_image_gradient(const ImageConvolution<A>& c) {
  const auto with_channels = [&]<int K>() {
    if (c.channels == 1) return run_image_gradient<A, K, 1>(c), true;
    if (c.channels == 3) return run_image_gradient<A, K, 3>(c), true;
    return false;
  };
  if (c.kernel == 3) return with_channels.template operator()<3>();
  if (c.kernel == 7) return with_channels.template operator()<7>();
  return false;
}

}  // namespace robust_lr::cpu
