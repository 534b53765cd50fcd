// The gradient of the weights of a channel transform of the stem's values, and its contribution to the gradient of the
// stem's own transform. A thread owns some channels; the warps of a block take turns at its pixels.
#pragma once

#include "../common/reduce.h"
#include "projection.h"

namespace robust_lr::cuda {

constexpr int kSpan = 2048;      // pixels of a block
constexpr int kOwnChannels = 2;  // of a thread
constexpr int kTerms = kChannels + kMaxInputs + 1;

// Values of a pixel that all channels need.
template <class A>
struct alignas(16) Pixel {
  A dout[kChannels], inputs[kMaxInputs];
};

// Shared memory: pixels first, and the sums of each warp in the same place afterwards.
template <class A>
constexpr size_t kWeightsBytes =
    std::max(kProjectionThreads * sizeof(Pixel<A>), kProjectionThreads * kOwnChannels * kTerms * sizeof(A));

template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    weights_gradient(Projection<T> f, int spans, int row_blocks, WideOf<T>* dweights, WideOf<T>* dtransform) {
  using A = WideOf<T>;
  constexpr int kBlockChannels = 32 * kOwnChannels;
  const int channels = int(f.p.channels), terms = f.x.inputs + 1, plane = f.height * f.width;
  const int row_block = blockIdx.x % row_blocks, row = row_block * kChannels;
  const Index part = blockIdx.x / row_blocks % (f.p.batch * spans);
  const int block_channel = blockIdx.x / row_blocks / (f.p.batch * spans) * kBlockChannels;
  const int n = int(part / spans), begin = int(part % spans) * kSpan, end = min(begin + kSpan, plane);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  Channel<A> own[kOwnChannels];
  A dweight[kOwnChannels][kChannels] = {}, dinput[kOwnChannels][kMaxInputs + 1] = {};
#pragma unroll
  for (int i = 0; i < kOwnChannels; ++i) own[i] = channel_of(f, row, block_channel + i * 32 + lane);
  auto* const pixels = reinterpret_cast<Pixel<A>*>(shared_memory);
  for (int first = begin; first < end; first += kProjectionThreads) {
    __syncthreads();
    const Spot<T> spot(f, n, first + threadIdx.x);
    Pixel<A> pixel;
    spot.read(row, pixel.dout);
#pragma unroll
    for (int j = 0; j < kMaxInputs; ++j) pixel.inputs[j] = spot.inputs[j];
    pixels[threadIdx.x] = pixel;
    __syncthreads();
    const int count = min(kProjectionThreads, end - first);
    with_kind(f, [&]<int Inputs, bool Full>(Kind<Inputs, Full>) {
      for (int i = warp; i < count; i += kProjectionThreads / 32) {
        const Pixel<A> pixel = pixels[i];
#pragma unroll
        for (int m = 0; m < kOwnChannels; ++m) {
          const int channel = block_channel + m * 32 + lane;
          A dx = 0;
          if (!Full && row == 0 && f.dx.data != nullptr && channel < channels)
            dx = *address(f.dx, n, channel, (first + i) / f.width, (first + i) % f.width);
          const A z = value_of<Inputs>(own[m], pixel.inputs), dz = gradient_of<T>(own[m], z, pixel.dout, dx);
          const A x = relu(z);
#pragma unroll
          for (int r = 0; r < kChannels; ++r) dweight[m][r] += pixel.dout[r] * x;
#pragma unroll
          for (int j = 0; j < Inputs; ++j) dinput[m][j] += pixel.inputs[j] * dz;
          dinput[m][kMaxInputs] += dz;
        }
      }
    });
  }

  __syncthreads();
  A* const sums = reinterpret_cast<A*>(shared_memory);  // [warp, term, channel]
  constexpr int kEntries = kTerms * kBlockChannels;
#pragma unroll
  for (int m = 0; m < kOwnChannels; ++m) {
    A* const to = sums + warp * kEntries + m * 32 + lane;
#pragma unroll
    for (int r = 0; r < kChannels; ++r) to[r * kBlockChannels] = dweight[m][r];
#pragma unroll
    for (int j = 0; j <= kMaxInputs; ++j) to[(kChannels + j) * kBlockChannels] = dinput[m][j];
  }
  sum_warps(sums, kEntries, [&](int i, A sum) {
    const int term = i / kBlockChannels, channel = block_channel + i % kBlockChannels, input = term - kChannels;
    if (channel >= channels) return;
    A* const transform = dtransform + ((part * row_blocks + row_block) * channels + channel) * terms;
    if (input == kMaxInputs) transform[f.x.inputs] = sum;
    if (input >= 0 && input < f.x.inputs) transform[input] = sum;
    if (input < 0 && row + term < f.rows) dweights[(part * f.rows + row + term) * channels + channel] = sum;
  });
}

}  // namespace robust_lr::cuda
