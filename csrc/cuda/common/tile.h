// Moves groups of channels between global memory, NCHW or channels-last, and shared memory or registers.
//
// Tiles make one of all memory layouts: what computes reads shared memory, always in the same order.
#pragma once

#include "divisor.h"

namespace robust_lr::cuda {

extern __shared__ float4 shared_memory[];

// The pixels of an image that a block works on, which may reach outside the image: there a tile holds zeros, or what
// lets a pixel take no part.
//
// Columns that are `Stride` apart are neighbors in memory, as neighboring threads read them: no two of a warp's threads
// then meet in one bank of shared memory.
template <int Stride>
struct Tile {
  static_assert(Stride == 1 || Stride == 2);
  int n, row, column;  // image, and the first pixel
  int rows, columns;
  int group, groups;  // the first group, and how many: a power of two
  int group_shift;    // its logarithm
  Divisor by_columns;

  __host__ __device__ int size() const { return rows * columns * groups; }
  __device__ int at(int r, int c, int g) const {
    if (Stride == 2) c = (c & 1) * ((columns + 1) >> 1) + (c >> 1);
    return (r * columns + c) * groups + g;
  }
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

// The same near a pixel, whose address is `first`: the distance in bytes fits into 32 bits (are_close in arguments.h).
template <class T>
__device__ T* pixel_at(const Image<T>& image, T* first, int rows, int columns) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  const int bytes = rows * (int(image.row) * int(sizeof(T))) + columns * (int(image.column) * int(sizeof(T)));
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + bytes);
}

// Returns true if pixels follow each other in memory, channels-last.
template <class T>
__device__ bool is_dense(const Image<T>& image, Index width) {
  return image.channel == 1 && image.row == width * image.column;
}

__device__ inline bool is_inside(int row, int column, int height, int width) {
  return unsigned(row) < unsigned(height) && unsigned(column) < unsigned(width);
}

// Keeps a value in its register, where the compiler would rather compute it again in every round of a loop.
__device__ inline void keep(int& value) {
#ifdef __CUDA_ARCH__
  asm("" : "+r"(value));
#endif
}
__device__ inline void keep(float& value) {
#ifdef __CUDA_ARCH__
  asm("" : "+f"(value));
#endif
}

// Calls load(row, column) for every place of the tile that is of this thread's group, InFlight of them before their
// store(place, value), so that a thread waits for several at a time. Rows and columns are the tile's.
template <int InFlight, int Stride, class Load, class Store>
__device__ void each_place(const Tile<Stride>& tile, Load load, Store store) {
  const int g = threadIdx.x & (tile.groups - 1);
  int row = int(threadIdx.x) >> tile.group_shift, row_step = int(blockDim.x) >> tile.group_shift;
  int place = threadIdx.x, place_step = row_step << tile.group_shift;
  int column = tile.by_columns.divide(row), column_step = tile.by_columns.divide(row_step);
  keep(row_step), keep(column_step), keep(place_step);
  while (row < tile.rows) {
    decltype(load(0, 0)) values[InFlight];
    int places[InFlight];
    bool loaded[InFlight];
#pragma unroll
    for (int i = 0; i < InFlight; ++i) {
      if (Stride > 1) place = tile.at(row, column, g);
      places[i] = place, loaded[i] = row < tile.rows;
      if (loaded[i]) values[i] = load(row, column);
      place += place_step, row += row_step, column += column_step;
      if (column >= tile.columns) column -= tile.columns, ++row;
    }
#pragma unroll
    for (int i = 0; i < InFlight; ++i)
      if (loaded[i]) store(places[i], values[i]);
  }
}

// The group that a thread loads.
template <int Stride>
__device__ int group_to_load(const Tile<Stride>& tile) {
  return tile.group + (int(threadIdx.x) & (tile.groups - 1));
}

// The channels of a group at one pixel, as they are in memory.
template <class T>
struct alignas(16) Channels {
  T elements[kChannels];
};

// The channels of this thread's group, near the tile's first pixel; they move in units of type Unit.
template <class T, class Unit>
struct ChannelsInMemory {
  using Raw = Channels<T>;
  Image<const T> image;
  const T* first;
  int present;

  __device__ void read(int row, int column, Raw& to) const {
    constexpr int kUnit = sizeof(Unit) / sizeof(T);
    const T* const from = pixel_at(image, first, row, column);
#pragma unroll
    for (int c = 0; c < kChannels; c += kUnit) {
      if (kUnit < kChannels && c >= present) continue;
      if (kUnit == 1) {
        to.elements[c] = from[c * image.channel];
      } else {
        *reinterpret_cast<Unit*>(to.elements + c) = *reinterpret_cast<const Unit*>(from + c);
      }
    }
  }
  __device__ const Channels<T>& finish(const Raw& raw) const { return raw; }
};

// Calls f with what reads the channels of this thread's group.
template <class T, int Stride, class F>
__device__ void with_channels(const Tile<Stride>& tile, const Image<const T>& image, const Problem& p, F f) {
  const int group = group_to_load(tile), present = present_channels(p, group);
  const T* const first = address(image, tile.n, group * int(p.shared), tile.row, tile.column);
  if (image.bytes == 16) return f(ChannelsInMemory<T, float4>{image, first, present});
  if (image.bytes == 8) return f(ChannelsInMemory<T, float2>{image, first, present});
  f(ChannelsInMemory<T, T>{image, first, present});
}

// Loads the channels of each group to [piece][row][column][group], and what `scalars` says to [row][column][group].
// Pixels outside the image have zeros, and what scalars.outside() says.
template <class T, int Stride, class X, class Scalars, class E, class Scalar>
__device__ void load_tile(const Tile<Stride>& tile, const X& x, const Problem& p, Index rows, Index columns,
                          const Scalars& scalars, Piece<E>* to, Scalar* scalars_to) {
  const bool present = group_to_load(tile) < int(p.groups);
  int height = present ? int(rows) : 0, width = int(columns);
  const int size = tile.size();
  keep(height);
  with_channels<T>(tile, x, p, [&](const auto& channels) {
    struct Loaded {
      typename std::remove_cvref_t<decltype(channels)>::Raw raw;
      Scalar scalar;
      bool inside;
    };
    each_place<2>(
        tile,
        [&](int row, int column) {
          Loaded loaded{};
          loaded.scalar = scalars.outside();
          loaded.inside = is_inside(tile.row + row, tile.column + column, height, width);
          if (loaded.inside) {
            channels.read(row, column, loaded.raw);
            loaded.scalar = scalars.inside(row, column);
          } else if (scalars.pads()) {
            loaded.scalar = scalars.padded(tile.row + row, tile.column + column);
          }
          return loaded;
        },
        [&](int place, const Loaded& loaded) {
          Channels<E> found{};
          if (loaded.inside) convert_channels(channels.finish(loaded.raw).elements, found.elements);
#pragma unroll
          for (int i = 0; i < Piece<E>::kCount; ++i)
            reinterpret_cast<float4*>(to)[i * size + place] = reinterpret_cast<const float4*>(found.elements)[i];
          scalars_to[place] = loaded.scalar;
        });
  });
}

// The prior of the tile's groups: [tap][group]; zeros where there is none.
template <int Stride>
__device__ void load_prior(const Tile<Stride>& tile, const float* geo, const Problem& p, float* to) {
  const int taps = int(p.kernel * p.kernel), group = group_to_load(tile);
  const bool present = geo != nullptr && group < p.groups;
  const int step = int(blockDim.x) >> tile.group_shift;
  for (int tap = int(threadIdx.x) >> tile.group_shift; tap < taps; tap += step)
    to[(tap << tile.group_shift) + group - tile.group] = present ? geo[group * taps + tap] : 0.f;
}

// The channels at one place of a tile.
template <class T>
__device__ void read_channels(const Piece<T>* tile, int size, int place, float (&to)[kChannels]) {
  alignas(16) T elements[kChannels];
#pragma unroll
  for (int i = 0; i < Piece<T>::kCount; ++i)
    reinterpret_cast<float4*>(elements)[i] = reinterpret_cast<const float4*>(tile)[i * size + place];
  widen_channels(elements, to);
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
  widen_channels(elements, to);
}

// The channels of a group at the pixels of a strip, zeros where `inside(s)` is false.
template <class T, int S, class Inside>
__device__ void read_strip(const Image<const T>& image, const Problem& p, int n, int group, int first, int column,
                           Inside inside, float (&to)[S][kChannels]) {
  const int present = present_channels(p, group);
  const T* const pixel = address(image, n, group * int(p.shared), first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) read_channels(image, pixel_at(image, pixel, s, 0), inside(s) ? present : 0, to[s]);
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
