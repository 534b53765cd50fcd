// The channel transforms that make queries and keys from the stem's values, and their contribution to the gradient of
// the image. A thread owns some pixels and goes through all channels.
#pragma once

#include <utility>

#include "projection_arguments.h"
#include "stem.h"

namespace robust_lr::cuda {

constexpr int kProjectionThreads = 128, kPixels = 4;
constexpr int kProjectionResident = 3;  // resident blocks of a multiprocessor, at least
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

// Calls g(channel, number) for all channels, which pass through shared memory. All threads of the block must call it.
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
  // The part of a value's gradient that is in memory.
  __device__ A dx(int channel) const {
    return f.dx.data != nullptr && inside ? *address(f.dx, n, channel, row, column) : A(0);
  }
};

// Calls g with the kind of the projection. Networks have three inputs and no gradients of values in memory.
template <class T, class G>
__device__ void with_kind(const Projection<T>& f, G g) {
  if (f.x.inputs == 3 && f.dx.data == nullptr) return g(Kind<3, true>());
  g(Kind<kMaxInputs, false>());
}

// A value before its ReLU.
template <int Inputs, class A>
__device__ A value_of(const Channel<A>& channel, const A (&inputs)[kMaxInputs]) {
  A z = channel.bias;
#pragma unroll
  for (int j = 0; j < Inputs; ++j) z += channel.transform[j] * inputs[j];
  return z;
}

// The gradient of a value before its ReLU: the contribution of 8 rows of the projection, added to `dx`.
template <class T>
__device__ WideOf<T> gradient_of(const Channel<WideOf<T>>& channel, WideOf<T> z, const WideOf<T> (&dout)[kChannels],
                                 WideOf<T> dx) {
#pragma unroll
  for (int r = 0; r < kChannels; ++r) dx += channel.weights[r] * dout[r];
  return z <= 0 ? WideOf<T>(0) : dx;
}

template <class T>
struct Spots {
  Spot<T> spots[kPixels];

  // A thread's spots: every kProjectionThreads-th pixel of its block.
  __device__ Spots(const Projection<T>& f, int n, int block)
      : Spots(f, n, block, std::make_index_sequence<kPixels>()) {}
  template <std::size_t... S>
  __device__ Spots(const Projection<T>& f, int n, int block, std::index_sequence<S...>)
      : spots{Spot<T>(f, n, (block * kPixels + int(S)) * kProjectionThreads + int(threadIdx.x))...} {}
};

template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    project(Projection<T> f, int pixel_blocks, int row_blocks) {
  using A = WideOf<T>;
  const int row = blockIdx.x % row_blocks * kChannels, block = blockIdx.x / row_blocks, n = block / pixel_blocks;
  const Spots<T> own(f, n, block % pixel_blocks);
  const auto& spots = own.spots;
  A sums[kPixels][kChannels] = {};
  with_kind(f, [&]<int Inputs, bool Full>(Kind<Inputs, Full>) {
    each_channel(f, row, [&](const Channel<A>& channel, int) {
#pragma unroll
      for (int s = 0; s < kPixels; ++s) {
        const A x = relu(value_of<Inputs>(channel, spots[s].inputs));
#pragma unroll
        for (int r = 0; r < kChannels; ++r) sums[s][r] += channel.weights[r] * x;
      }
    });
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
  const Spots<T> own(f, n, blockIdx.x % pixel_blocks);
  const auto& spots = own.spots;
  A sums[kPixels][kMaxInputs] = {};
  with_kind(f, [&]<int Inputs, bool Full>(Kind<Inputs, Full>) {
    for (int row = 0; row < f.rows; row += kChannels) {
      A dout[kPixels][kChannels];
#pragma unroll
      for (int s = 0; s < kPixels; ++s) spots[s].read(row, dout[s]);
      each_channel(f, row, [&](const Channel<A>& channel, int c) {
#pragma unroll
        for (int s = 0; s < kPixels; ++s) {
          const A z = value_of<Inputs>(channel, spots[s].inputs);
          const A dz = gradient_of<T>(channel, z, dout[s], Full || row > 0 ? A(0) : spots[s].dx(c));
#pragma unroll
          for (int j = 0; j < Inputs; ++j) sums[s][j] += channel.transform[j] * dz;
        }
      });
    }
  });
  const Index plane = f.p.height * f.p.width, size = f.p.batch * f.x.inputs * plane;
#pragma unroll
  for (int s = 0; s < kPixels; ++s) {
#pragma unroll
    for (int j = 0; j < kMaxInputs; ++j) {
      if (!spots[s].inside || j >= f.x.inputs) continue;
      const Index at = spots[s].pixel(0) + j * plane;
      A sum = 0;
#pragma unroll 1
      for (int k = 0; k < count; ++k) sum += parts[k * size + at];
      dimage[at] = sum + sums[s][j];
    }
  }
}

}  // namespace robust_lr::cuda
