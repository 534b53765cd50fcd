// Channel transforms of the stem's values, which make queries and keys, and what their gradients add to that of the
// image. A thread owns some pixels and goes through all channels.
#pragma once

#include "projection_arguments.h"
#include "stem.h"

namespace robust_lr::cuda {

constexpr int kProjectionThreads = 128, kPixels = 2;
constexpr int kProjectionResident = 3;  // blocks at once on a multiprocessor, at least
constexpr int kTable = 64;              // channels in shared memory at a time

// Values of a channel that all pixels need.
template <class A>
struct alignas(16) Channel {
  A weights[kChannels], transform[kMaxInputs], bias;
};

// Channel `c`, with its weights for the rows from `row` on; zeros after the last one.
template <class T>
__device__ Channel<WideOf<T>> channel_of(const Projection<T>& f, int row, int c) {
  Channel<WideOf<T>> channel{};
  if (c >= f.p.channels) return channel;
#pragma unroll
  for (int r = 0; r < kChannels; ++r)
    if (row + r < f.rows) channel.weights[r] = widen(f.weights[(row + r) * f.p.channels + c]);
  const auto* const transform = row_of(f.x, c);
#pragma unroll
  for (int j = 0; j < kMaxInputs; ++j)
    if (j < f.x.inputs) channel.transform[j] = transform[j];
  channel.bias = transform[f.x.inputs];
  return channel;
}

// Calls g(channel, number) for all of them, which go through shared memory; all threads of the block take part.
template <class T, class G>
__device__ void each_channel(const Projection<T>& f, int row, G g) {
  auto* const table = reinterpret_cast<Channel<WideOf<T>>*>(shared_memory);
  for (int first = 0; first < f.p.channels; first += kTable) {
    __syncthreads();
    if (threadIdx.x < kTable) table[threadIdx.x] = channel_of(f, row, first + threadIdx.x);
    __syncthreads();
    for (int i = 0; i < min(kTable, int(f.p.channels) - first); ++i) g(table[i], first + i);
  }
}

// A result's place, and the pixel that it is made from.
template <class T>
struct Spot {
  using A = WideOf<T>;
  const Projection<T>& f;
  int n, row, column;
  bool inside;
  A inputs[kMaxInputs];

  __device__ Spot(const Projection<T>& f, int n, int number) : f(f), n(n), inside(number < f.height * f.width) {
    row = number / f.width, column = number % f.width;
#pragma unroll
    for (int j = 0; j < kMaxInputs; ++j) inputs[j] = inside && j < f.x.inputs ? f.x.image[pixel(j)] : A(0);
  }

  __device__ Index pixel(int input) const {
    return ((Index(n) * f.x.inputs + input) * f.p.height + row * f.stride) * f.p.width + column * f.stride;
  }
  __device__ void read(int first_row, A (&dout)[kChannels]) const {
    const A* const from = address(f.out, n, first_row, row, column);
    read_channels(f.out, from, inside ? min(kChannels, f.rows - first_row) : 0, dout);
  }
  // The gradient of a value that is in memory.
  __device__ A dx(int channel) const {
    return f.dx.data != nullptr && inside ? *address(f.dx, n, channel, row, column) : A(0);
  }
};

template <class A>
__device__ A value_of(const Channel<A>& channel, const A (&inputs)[kMaxInputs]) {
  A z = channel.bias;
#pragma unroll
  for (int j = 0; j < kMaxInputs; ++j) z += channel.transform[j] * inputs[j];
  return relu(z);
}

// The gradient of a value before its ReLU, of 8 rows of the projection and of what is in memory.
template <class T>
__device__ WideOf<T> gradient_of(const Channel<WideOf<T>>& channel, WideOf<T> x, const WideOf<T> (&dout)[kChannels],
                                 WideOf<T> dx) {
#pragma unroll
  for (int r = 0; r < kChannels; ++r) dx += channel.weights[r] * dout[r];
  return x <= 0 ? WideOf<T>(0) : dx;
}

template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    project(Projection<T> f, int pixel_blocks, int row_blocks) {
  using A = WideOf<T>;
  const int row = blockIdx.x % row_blocks * kChannels, block = blockIdx.x / row_blocks;
  const int n = block / pixel_blocks, first = block % pixel_blocks * kPixels * kProjectionThreads + threadIdx.x;
  const Spot<T> spots[kPixels] = {{f, n, first}, {f, n, first + kProjectionThreads}};
  A sums[kPixels][kChannels] = {};
  each_channel(f, row, [&](const Channel<A>& channel, int) {
#pragma unroll
    for (int s = 0; s < kPixels; ++s) {
      const A x = value_of(channel, spots[s].inputs);
#pragma unroll
      for (int r = 0; r < kChannels; ++r) sums[s][r] += channel.weights[r] * x;
    }
  });
#pragma unroll
  for (int s = 0; s < kPixels; ++s) {
    A* const to = address(f.out, n, row, spots[s].row, spots[s].column);
    if (spots[s].inside) write_channels(f.out, to, min(kChannels, f.rows - row), sums[s]);
  }
}

template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    image_gradient(Projection<T> f, int pixel_blocks, const WideOf<T>* parts, int count, WideOf<T>* dimage) {
  using A = WideOf<T>;
  const int n = blockIdx.x / pixel_blocks;
  const int first = blockIdx.x % pixel_blocks * kPixels * kProjectionThreads + threadIdx.x;
  const Spot<T> spots[kPixels] = {{f, n, first}, {f, n, first + kProjectionThreads}};
  A sums[kPixels][kMaxInputs] = {};
  for (int row = 0; row < f.rows; row += kChannels) {
    A dout[kPixels][kChannels];
#pragma unroll
    for (int s = 0; s < kPixels; ++s) spots[s].read(row, dout[s]);
    each_channel(f, row, [&](const Channel<A>& channel, int c) {
#pragma unroll
      for (int s = 0; s < kPixels; ++s) {
        const A x = value_of(channel, spots[s].inputs);
        const A dz = gradient_of<T>(channel, x, dout[s], row == 0 ? spots[s].dx(c) : A(0));
#pragma unroll
        for (int j = 0; j < kMaxInputs; ++j) sums[s][j] += channel.transform[j] * dz;
      }
    });
  }
  const Index size = f.p.batch * f.x.inputs * f.p.height * f.p.width;
#pragma unroll
  for (int s = 0; s < kPixels; ++s) {
#pragma unroll
    for (int j = 0; j < kMaxInputs; ++j) {
      if (!spots[s].inside || j >= f.x.inputs) continue;
      const Index at = spots[s].pixel(j);
      A sum = 0;
      for (int k = 0; k < count; ++k) sum += parts[k * size + at];
      dimage[at] = sum + sums[s][j];
    }
  }
}

}  // namespace robust_lr::cuda
