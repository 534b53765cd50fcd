// Moves groups of channels between global memory, NCHW or channels-last, and shared memory or registers.
//
// Tiles hide the memory layout: computations read shared memory, always in the same order.
#pragma once

#include <bit>

#include "divisor.h"

namespace robust_lr::cuda {

extern __shared__ float4 shared_memory[];

constexpr int kRun = 4;  // rows of a column that are loaded together

// The layout of a tile in shared memory: [group][column][row], so that rows are adjacent whatever the tile's size. The
// strides avoid bank conflicts between lanes that access neighboring columns and all groups at once.
struct TileShape {
  int rows, columns;
  int groups, group_shift;                         // a power of two and its logarithm
  int column_stride, piece_stride, scalar_stride;  // the last two: from group to group, in 16-byte units and in floats
  Divisor by_columns;

  TileShape() = default;
  // With room for whole runs if `whole`, otherwise only for the rows.
  TileShape(bool whole, int rows, int columns, int groups)
      : rows(rows),
        columns(columns),
        groups(groups),
        group_shift(std::countr_zero(unsigned(groups))),
        column_stride((whole ? runs_of_column() * kRun : rows) | 1),
        piece_stride(stride(8)),
        scalar_stride(stride(32)),
        by_columns(columns) {}

  __host__ __device__ int runs_of_column() const { return (rows + kRun - 1) / kRun; }
  __host__ __device__ int pieces() const { return groups * piece_stride; }
  __host__ __device__ int scalars() const { return groups * scalar_stride; }
  __host__ __device__ int runs() const { return columns * runs_of_column(); }  // of a group

 private:
  // An odd multiple of the number of columns that `lanes` lanes cover: as column strides are odd, all banks differ.
  int stride(int lanes) const {
    const int columns_at_once = std::max(1, lanes / groups);
    return ((columns * column_stride + columns_at_once - 1) / columns_at_once | 1) * columns_at_once;
  }
};

// The pixels of an image that a block works on. They may extend outside the image; there a tile holds zeros, or keys
// and queries that get a weight of zero.
//
// Columns that are `Stride` apart are neighbors in shared memory because neighboring threads read them.
template <int Stride>
struct Tile : TileShape {
  static_assert(Stride == 1 || Stride == 2);
  static constexpr bool kWhole = Stride == 1;  // room for whole runs; at stride 2 shared memory would not suffice

  int n, row, column;  // image, and the first pixel
  int group;           // the first group

  __device__ int at(int r, int c, int g) const { return g * piece_stride + slot(c) * column_stride + r; }
  __device__ int scalar_at(int r, int c, int g) const { return g * scalar_stride + slot(c) * column_stride + r; }

 private:
  __device__ int slot(int c) const { return Stride == 2 ? (c & 1) * ((columns + 1) >> 1) + (c >> 1) : c; }
};

__device__ inline int present_channels(const Problem& p, int group) {
  return max(0, min(int(p.shared), int(p.channels) - group * int(p.shared)));
}

template <class T>
__device__ T* address(const Image<T>& image, int n, int channel, int row, int column) {
  return image.data + n * image.batch + channel * image.channel + row * image.row + column * image.column;
}

// The image that the gradient of the values is written to.
template <class T>
__device__ const Image<T>& in_memory(const Image<T>& gradient) {
  return gradient;
}

template <class T>
__device__ auto value_at(const Image<T>& x, const Problem&, int n, int channel, int row, int column) {
  return widen(*address(x, n, channel, row, column));
}

// Address of the pixel that is `rows` and `columns` away from the one at `first`: the distance in bytes fits into 32
// bits (are_close in arguments.h).
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

// Makes the compiler keep a value in a register instead of computing it again in every round of a loop.
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

// The runs of a tile that a thread loads: every `step`th one, from number `first` on, row by row.
struct Runs {
  int row, column, columns, row_step, column_step;

  __device__ Runs(const TileShape& tile, int first, int step) : row(first), columns(tile.columns), row_step(step) {
    column = tile.by_columns.divide(row), column_step = tile.by_columns.divide(row_step);
    row *= kRun, row_step *= kRun;
    keep(row_step), keep(column_step);
  }
  __device__ void go_on() {
    row += row_step, column += column_step;
    if (column >= columns) column -= columns, row += kRun;
  }
};

// Calls f(row, column) with the first pixel of each run that this thread loads.
template <class F>
__device__ void each_run(const TileShape& tile, F f) {
  Runs runs(tile, int(threadIdx.x) >> tile.group_shift, int(blockDim.x) >> tile.group_shift);
#pragma unroll 1
  for (; runs.row < tile.rows; runs.go_on()) f(runs.row, runs.column);
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

// Reads the channels of this thread's group, starting from the tile's first pixel, in units of type Unit.
template <class T, class Unit>
struct ChannelsInMemory {
  using Raw = Channels<T>;
  Image<const T> image;
  const T* first;
  int present;

  __device__ const T* at(int row, int column) const { return pixel_at(image, first, row, column); }
  // `row` is relative to the row of `pixel`.
  __device__ void read(const T* pixel, int row, Raw& to) const {
    constexpr int kUnit = sizeof(Unit) / sizeof(T);
    const T* const from = pixel_at(image, pixel, row, 0);
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
  __device__ const Channels<T>& finish(const Raw& raw, bool) const { return raw; }
};

// Calls f with a reader of the channels of this thread's group.
template <class T, int Stride, class F>
__device__ void with_channels(const Tile<Stride>& tile, const Image<const T>& image, const Problem& p, F f) {
  const int group = group_to_load(tile), present = present_channels(p, group);
  const T* const first = address(image, tile.n, group * int(p.shared), tile.row, tile.column);
  if (image.bytes == 16) return f(ChannelsInMemory<T, float4>{image, first, present});
  if (image.bytes == 8) return f(ChannelsInMemory<T, float2>{image, first, present});
  f(ChannelsInMemory<T, T>{image, first, present});
}

// Loads the channels of each group into `to`, in pieces, and a value from `scalars` for each pixel into `scalars_to`,
// placed by scalar_at() if it has the size of a float and by at() otherwise. Pixels outside the image get zeros and
// scalars.outside().
template <class T, int Stride, class X, class Scalars, class E, class Scalar>
__device__ void load_tile(const Tile<Stride>& tile, const X& x, const Problem& p, Index rows, Index columns,
                          const Scalars& scalars, Piece<E>* to, Scalar* scalars_to) {
  const int g = threadIdx.x & (tile.groups - 1), width = int(columns);
  int height = tile.group + g < int(p.groups) ? int(rows) : 0;
  keep(height);
  with_channels<T>(tile, x, p, [&](const auto& channels) {
    each_run(tile, [&](int row, int column) {
      const auto pixel = channels.at(row, column);
      const auto scalar = scalars.at(row, column);
      const int rows_inside = unsigned(tile.column + column) < unsigned(width) ? height : 0;
      typename std::remove_cvref_t<decltype(channels)>::Raw raw[kRun];
      Scalar own[kRun];
      bool inside[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        inside[i] = unsigned(tile.row + row + i) < unsigned(rows_inside);
        raw[i] = {}, own[i] = scalars.outside();
        if (inside[i]) channels.read(pixel, i, raw[i]), own[i] = scalars.inside(scalar, i);
      }
      const int place = tile.at(row, column, g);
      const int scalar_place = sizeof(Scalar) == sizeof(float) ? tile.scalar_at(row, column, g) : place;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        if (!tile.kWhole && row + i >= tile.rows) continue;
        Channels<E> found;
        convert_channels(channels.finish(raw[i], inside[i]).elements, found.elements);
#pragma unroll
        for (int j = 0; j < Piece<E>::kCount; ++j)
          reinterpret_cast<float4*>(to)[j * tile.pieces() + place + i] =
              reinterpret_cast<const float4*>(found.elements)[j];
        scalars_to[scalar_place + i] = own[i];
      }
    });
  });
}

// The prior of the tile's groups: [group][tap]; zeros where there is none.
__device__ inline void load_prior(const TileShape& tile, int group, const float* geo, const Problem& p, float* to) {
  const int taps = int(p.kernel * p.kernel), present = geo != nullptr ? (int(p.groups) - group) * taps : 0;
  for (int i = threadIdx.x; i < tile.groups * taps; i += blockDim.x) to[i] = i < present ? geo[group * taps + i] : 0.f;
}

// The channels at one place of a tile.
template <class T>
__device__ void read_channels(const Piece<T>* tile, int pieces, int place, float (&to)[kChannels]) {
  alignas(16) T elements[kChannels];
#pragma unroll
  for (int i = 0; i < Piece<T>::kCount; ++i)
    reinterpret_cast<float4*>(elements)[i] = reinterpret_cast<const float4*>(tile)[i * pieces + place];
  widen_channels(elements, to);
}

// Reads the channels of a group at one pixel from global memory, with zeros past the first `present`; write_channels
// does not write beyond them.
template <class I, class T>
__device__ void read_channels(const I& image, const T* from, int present, WideOf<T> (&to)[kChannels]) {
  alignas(16) T elements[kChannels] = {};
  auto in_units = [&](auto unit) {
#pragma unroll
    for (int c = 0; c < kChannels; c += sizeof(unit) / sizeof(T)) {
      if (c < present)
        *reinterpret_cast<decltype(unit)*>(elements + c) = *reinterpret_cast<const decltype(unit)*>(from + c);
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
  narrow_channels(from, elements);
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
