// Moves groups of channels between global memory, NCHW or channels-last, and shared memory or registers.
//
// Tiles make one of all memory layouts: what computes reads shared memory, always in the same order.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "elements.h"

namespace robust_lr::cuda {

extern __shared__ float4 shared_memory[];

// The pixels of an image that a block works on, which may reach outside the image: there a tile holds zeros.
struct Tile {
  int n, row, column;  // image, and the first pixel
  int rows, columns;
  int group, groups;  // the first group, and how many: a power of two

  __host__ __device__ int size() const { return rows * columns * groups; }
  __device__ int at(int r, int c, int g) const { return (r * columns + c) * groups + g; }
};

__device__ inline int present_channels(const Problem& p, int group) {
  return max(0, min(int(p.shared), int(p.channels) - group * int(p.shared)));
}

template <class T>
__device__ T* address(const Image<T>& image, int n, int channel, int row, int column) {
  return image.data + n * image.batch + channel * image.channel + row * image.row + column * image.column;
}

// The gradient of the values in memory.
template <class T>
__device__ const Image<T>& in_memory(const Image<T>& gradient) {
  return gradient;
}

template <class T>
__device__ auto value_at(const Image<T>& x, const Problem&, int n, int channel, int row, int column) {
  return widen(*address(x, n, channel, row, column));
}

// Calls load(row, column, group) for every place of the tile, InFlight of them before their store(place, value), so
// that a thread waits for several at a time.
template <int InFlight, class Load, class Store>
__device__ void each_place(const Tile& tile, Load load, Store store) {
  const int g = threadIdx.x % tile.groups, step = blockDim.x / tile.groups, pixels = tile.rows * tile.columns;
  int pixel = threadIdx.x / tile.groups;
  int row = pixel / tile.columns, column = pixel % tile.columns;
  while (pixel < pixels) {
    decltype(load(0, 0, 0)) values[InFlight];
    int places[InFlight];
#pragma unroll
    for (int i = 0; i < InFlight; ++i) {
      places[i] = pixel < pixels ? pixel * tile.groups + g : -1;
      if (pixel < pixels) values[i] = load(tile.row + row, tile.column + column, tile.group + g);
      pixel += step;
      for (column += step; column >= tile.columns; column -= tile.columns) ++row;
    }
#pragma unroll
    for (int i = 0; i < InFlight; ++i)
      if (places[i] >= 0) store(places[i], values[i]);
  }
}

// One value of each group, as float: [row][column][group].
template <class T>
__device__ void load_scalars(const Tile& tile, const Image<T>& image, int groups, int height, int width, float* to) {
  each_place<4>(
      tile,
      [&](int row, int column, int group) {
        const bool inside = group < groups && row >= 0 && row < height && column >= 0 && column < width;
        return inside ? widen(*address(image, tile.n, group, row, column)) : 0.f;
      },
      [&](int place, float value) { to[place] = value; });
}

// All channels of each group: [piece][row][column][group]. Done after `finish_loading`.
template <class T>
__device__ void load_vectors(const Tile& tile, const Image<const T>& image, const Problem& p, int height, int width,
                             Piece<T>* to) {
  auto with_bytes = [&](auto copy) {
    each_place<1>(
        tile,
        [&](int row, int column, int group) {
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          const int present = inside ? present_channels(p, group) : 0;
          const T* from = address(image, tile.n, group * int(p.shared), row, column);
          const int place = tile.at(row - tile.row, column - tile.column, group - tile.group);
#pragma unroll
          for (int i = 0; i < Piece<T>::kCount; ++i)
            copy(from, i * Piece<T>::kElements, present, to[i * tile.size() + place].elements);
          return 0;
        },
        [](int, int) {});
  };
  auto in_units = [&](auto unit) {  // of several elements, without a way through registers
    constexpr int kUnit = sizeof(unit) / sizeof(T);
    with_bytes([](const T* from, int channel, int present, T* elements) {
#pragma unroll
      for (int e = 0; e < Piece<T>::kElements; e += kUnit) {
        if (channel + e < present) {
          __pipeline_memcpy_async(elements + e, from + channel + e, sizeof unit);
        } else {
          *reinterpret_cast<decltype(unit)*>(elements + e) = {};
        }
      }
    });
  };
  if (image.bytes == 16) return in_units(float4());
  if (image.bytes == 8) return in_units(float2());
  with_bytes([&](const T* from, int channel, int present, T* elements) {
    Piece<T> piece;
#pragma unroll
    for (int e = 0; e < Piece<T>::kElements; ++e)
      piece.elements[e] = channel + e < present ? from[(channel + e) * image.channel] : T(0.f);
    *reinterpret_cast<float4*>(elements) = *reinterpret_cast<float4*>(piece.elements);
  });
}

__device__ inline void finish_loading() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
}

// The prior of the tile's groups: [tap][group]; zeros where there is none.
__device__ inline void load_prior(const Tile& tile, const float* geo, const Problem& p, float* to) {
  const int taps = int(p.kernel * p.kernel);
  for (int i = threadIdx.x; i < taps * tile.groups; i += blockDim.x) {
    const int group = tile.group + i % tile.groups;
    to[i] = geo != nullptr && group < p.groups ? geo[group * taps + i / tile.groups] : 0.f;
  }
}

// The channels at one place of a tile.
template <class T>
__device__ void read_channels(const Piece<T>* tile, int size, int place, float (&to)[kChannels]) {
#pragma unroll
  for (int i = 0; i < Piece<T>::kCount; ++i) {
    alignas(16) T elements[Piece<T>::kElements];
    *reinterpret_cast<float4*>(elements) = reinterpret_cast<const float4*>(tile)[i * size + place];
#pragma unroll
    for (int e = 0; e < Piece<T>::kElements; ++e) to[i * Piece<T>::kElements + e] = widen(elements[e]);
  }
}

// The channels of a group at one pixel, from and to global memory; those past `present` are zero, or not written.
template <class I, class T>
__device__ void read_channels(const I& image, const T* from, int present, WideOf<T> (&to)[kChannels]) {
  alignas(16) T elements[kChannels];
  auto in_units = [&](auto unit) {
#pragma unroll
    for (int c = 0; c < kChannels; c += sizeof(unit) / sizeof(T)) {
      if (c < present) unit = *reinterpret_cast<const decltype(unit)*>(from + c);
      *reinterpret_cast<decltype(unit)*>(elements + c) = c < present ? unit : decltype(unit){};
    }
  };
  if (image.bytes == 16 && sizeof(T) < 8) {
    in_units(float4{});
  } else if (image.bytes == 8 && sizeof(T) < 8) {
    in_units(float2{});
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) elements[c] = c < present ? from[c * image.channel] : T(0.f);
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) to[c] = widen(elements[c]);
}

// The channels of a group at the pixels of a strip, zeros where `inside(s)` is false.
template <class T, int S, class Inside>
__device__ void read_strip(const Image<const T>& image, const Problem& p, int n, int group, int first, int column,
                           Inside inside, float (&to)[S][kChannels]) {
  const int present = present_channels(p, group);
#pragma unroll
  for (int s = 0; s < S; ++s)
    read_channels(image, address(image, n, group * int(p.shared), first + s, column), inside(s) ? present : 0, to[s]);
}

template <class T>
__device__ void write_channels(const Image<T>& image, T* to, int present, const WideOf<T> (&from)[kChannels]) {
  alignas(16) T elements[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) narrow(from[c], elements + c);
  if (image.bytes == 16) {
#pragma unroll
    for (int c = 0; c < kChannels; c += Piece<T>::kElements)
      if (c < present) *reinterpret_cast<float4*>(to + c) = *reinterpret_cast<const float4*>(elements + c);
  } else if (image.bytes == 8 && sizeof(T) < 8) {
    constexpr int kUnit = 8 / sizeof(T);
#pragma unroll
    for (int c = 0; c < kChannels; c += kUnit)
      if (c < present) *reinterpret_cast<float2*>(to + c) = *reinterpret_cast<const float2*>(elements + c);
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c < present) to[c * image.channel] = elements[c];
  }
}

}  // namespace robust_lr::cuda
