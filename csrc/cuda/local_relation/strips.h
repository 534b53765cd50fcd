// The division of work in strip kernels: a thread owns a vertical strip of pixels of one group; a block owns the strips
// of some groups, columns and rows of one image and keeps everything in their windows in shared memory.
//
// A value read from the tile serves every pixel of the strip whose window holds it.
#pragma once

#include "../stem/stem_products.h"
#include "weights.h"

namespace robust_lr::cuda {

constexpr int kThreads = 128;  // in a block, at most
constexpr int kWarps = kThreads / 32;
constexpr int kResident = 3;  // resident blocks of a multiprocessor, at least: leaves 168 registers to a thread

// Tiles hold this as the key or query of pixels outside the image: it is so far from all others that the weight becomes
// zero without special treatment. Its square is finite, so that gradients, which are products with the weight, become
// zero and not NaN.
constexpr float kNowhere = 1e19f;

// Compile-time options of a strip kernel.
template <class Phi_, bool Softmax, int Size, int Stride>
struct Options {
  using Phi = Phi_;
  static constexpr bool kSoftmax = Softmax;
  static constexpr int kSize = Size, kRadius = Size / 2, kStride = Stride;
  // Where no distance makes a weight zero, branches leave out what lies outside the image.
  static constexpr bool kLeavesOut = !(Softmax && Phi::kBounded);
  static constexpr float kBeyond = kLeavesOut ? 0 : kNowhere;
};

// For 16-bit values, the keys in a tile and the queries that meet them are multiplied by the square root of log2 e, so
// that the power of two needs no factor. This rounds them to float, which is far finer than T's own rounding. Values
// that are float themselves are not multiplied, so that the logits of values far apart stay exact.
template <class T, class O>
constexpr float kFold =
    sizeof(T) == 2 && O::kSoftmax && std::is_same_v<typename O::Phi, SquaredDifference> ? 1.2011224f : 1.f;

// For 16-bit values, storing only the sum of lse and excess is exact enough: rounding it changes weights by less than
// T's own rounding does, unless logits are above a hundred thousand.
template <class T>
constexpr bool kOneLess = sizeof(T) == 2;

// The type of the channels in a tile. With float a thread need not widen them for each strip; at stride 1 tiles are
// small enough to hold it.
template <class T, class O>
using InTile = std::conditional_t<O::kStride == 1, float, T>;

// The division of an image into blocks.
struct Blocking {
  int groups, columns, strips;                    // of a block; groups is a power of two
  int group_blocks, column_blocks, strip_blocks;  // of an image
  int turns;        // 2 if a warp has every other column, so that all its lanes meet the same taps; otherwise 1
  int group_shift;  // the logarithm of groups
  Divisor by_group_blocks, by_column_blocks, by_strip_blocks, by_columns;  // the last by the columns of a turn
  TileShape tile;

  __host__ __device__ int blocks() const { return group_blocks * column_blocks * strip_blocks; }
};

// The place of a thread.
struct Place {
  int n, group, column, strip;                 // the thread's
  int first_group, first_column, first_strip;  // the block's
  int g, c, s;                                 // the thread's in its block
  bool inside;                                 // false for the threads that fill up the last warp

  __device__ explicit Place(const Blocking& b) {
    // Neighboring blocks work on neighboring groups: they share cache lines of channels-last tensors.
    int block = blockIdx.x;
    first_group = b.by_group_blocks.divide(block) * b.groups;
    first_column = b.by_column_blocks.divide(block) * b.columns;
    first_strip = b.by_strip_blocks.divide(block) * b.strips, n = block;
    const int each = int(blockDim.x) >> (b.turns - 1), turn = int(threadIdx.x) >= each;  // each: threads of a turn
    const int thread = int(threadIdx.x) - turn * each;
    g = thread & (b.groups - 1), s = thread >> b.group_shift;
    c = b.by_columns.divide(s) * b.turns + turn;
    group = first_group + g, column = first_column + c, strip = first_strip + s;
    inside = s < b.strips;
    keep(g), keep(c), keep(s);
  }
};

// The key pixels in the windows of a block's query pixels, in strips of `Strip`.
template <class O, int Strip>
struct KeyWindow {
  static constexpr int kRows = (Strip - 1) * O::kStride + O::kSize;  // in the windows of one strip

  using Tile = cuda::Tile<O::kStride>;

  static TileShape shape(const Blocking& b) {
    return {Tile::kWhole, (b.strips * Strip - 1) * O::kStride + O::kSize, (b.columns - 1) * O::kStride + O::kSize,
            b.groups};
  }
  __device__ static Tile tile(const Blocking& b, const Place& place) {
    Tile tile{b.tile};
    tile.n = place.n, tile.group = place.first_group;
    tile.row = place.first_strip * Strip * O::kStride - O::kRadius;
    tile.column = place.first_column * O::kStride - O::kRadius;
    return tile;
  }
};

template <int From, int To>
struct Range {
  static constexpr int kFrom = From, kTo = To;
};

// Calls f(row) for the key rows in the windows of a strip that starts at row `first` of the image. The rows above the
// strip are skipped if none of them is in the image, and so are those below it.
template <class O, int Strip, class F>
__device__ void each_key_row(int first, int pad, int height, F f) {
  constexpr int kRows = KeyWindow<O, Strip>::kRows, kBelow = kRows - O::kRadius;
  auto rows = [&](auto range) {
#pragma unroll
    for (int i = range.kFrom; i < range.kTo; ++i) {
      const int row = first + i - O::kRadius;
      if (O::kLeavesOut && (row < -pad || row >= height + pad)) continue;
      f(i);
    }
  };
  if (first - 1 >= -pad) rows(Range<0, O::kRadius>());
  rows(Range<O::kRadius, kBelow>());
  if (first + kBelow - O::kRadius < height + pad) rows(Range<kBelow, kRows>());
}

// Reads the keys of a thread's group, starting from the tile's first pixel.
template <class O, class Arguments>
struct Keys {
  const Arguments& a;
  float factor;
  decltype(a.k.data) first;

  __device__ Keys(const Tile<O::kStride>& tile, const Arguments& a, float factor)
      : a(a), factor(factor), first(address(a.k, tile.n, group_to_load(tile), tile.row, tile.column)) {}
  __device__ auto at(int row, int column) const { return pixel_at(a.k, first, row, column); }
  __device__ float inside(decltype(first) pixel, int row) const {
    return factor * widen(*pixel_at(a.k, pixel, row, 0));
  }
  __device__ float outside() const { return O::kBeyond; }
};

// Shared memory of a block: its key pixels.
template <class E>
struct KeyMemory {
  Piece<E>* x;
  float *keys, *prior;

  __device__ explicit KeyMemory(const TileShape& tile) {
    x = reinterpret_cast<Piece<E>*>(shared_memory);
    keys = reinterpret_cast<float*>(reinterpret_cast<float4*>(x) + Piece<E>::kCount * tile.pieces());
    prior = keys + tile.scalars();
  }
  static size_t bytes(const TileShape& tile, int taps) {
    return tile.pieces() * Piece<E>::kCount * sizeof(float4) + (tile.scalars() + taps * tile.groups) * sizeof(float);
  }
  // Keys are multiplied by `factor`.
  template <class O, class Arguments>
  __device__ void load(O, const Tile<O::kStride>& tile, const Arguments& a, float factor = 1) const {
    using T = std::remove_cvref_t<decltype(*a.y.data)>;
    load_keys<T>(O(), tile, a.x, a, Keys<O, Arguments>(tile, a, factor));
    load_prior(tile, tile.group, a.geo, a.p, prior);
    __syncthreads();
  }

 private:
  template <class T, class O, class X, class Arguments>
  __device__ void load_keys(O, const Tile<O::kStride>& tile, const X& values, const Arguments& a,
                            const Keys<O, Arguments>& own) const {
    if constexpr (std::is_same_v<X, Stem<float>> && sizeof(E) == 2) {
      // is_dense: the keys that the stem's own operator makes are channels-last.
      if (tile.groups == kProductGroups && has_whole_groups(values, a.p) && is_dense(a.k, a.p.width) &&
          a.p.padding == 0)
        return load_tile_by_products(tile, values, a.p, a.k, own.factor, own.outside(), x, keys);
    }
    load_tile<T>(tile, values, a.p, a.p.height, a.p.width, own, x, keys);
    if (a.p.padding > 0) zero_padding(tile, a.p);
  }

  // Sets the keys in the rows and columns of zeros around the image to zero. A thread writes only where it has loaded.
  template <int Stride>
  __device__ void zero_padding(const Tile<Stride>& tile, const Problem& p) const {
    const int pad = int(p.padding), height = int(p.height), width = int(p.width);
    each_run(tile, [&](int row, int column) {
      for (int i = 0; i < min(kRun, tile.rows - row); ++i) {
        const int y = tile.row + row + i, x = tile.column + column;
        if (!is_inside(y, x, height, width) && is_inside(y + pad, x + pad, height + 2 * pad, width + 2 * pad))
          keys[tile.scalar_at(row + i, column, threadIdx.x & (tile.groups - 1))] = 0;
      }
    });
  }
};

// The query pixels whose windows hold a block's key pixels, in strips of `Strip`. Strips start a multiple of the stride
// away from the first query's center, so that the taps that a key row meets are known at compile time.
template <class O, int Strip>
struct QueryWindow {
  static_assert(Strip % O::kStride == 0);
  static constexpr int kBefore = O::kRadius / O::kStride;  // query rows above a key whose windows hold it
  static constexpr int kRows = (Strip - 1 + O::kRadius) / O::kStride + kBefore + 1;

  using Tile = cuda::Tile<1>;

  static TileShape shape(const Blocking& b) {
    auto size = [](int keys) { return (keys - 1 + O::kRadius) / O::kStride + kBefore + 1; };
    return {Tile::kWhole, size(b.strips * Strip), size(b.columns), b.groups};
  }
  // For keys that start at the row and column -lead of the image.
  __device__ static Tile tile(const Blocking& b, const Place& place, int lead) {
    Tile tile{b.tile};
    tile.n = place.n, tile.group = place.first_group;
    tile.row = (place.first_strip * Strip - lead) / O::kStride - kBefore;
    tile.column = (place.first_column - lead) / O::kStride - kBefore;
    return tile;
  }
  // The tap row at which key `s` of a strip lies in the window of the strip's query `i`.
  __device__ static constexpr int tap(int s, int i) { return s - O::kStride * (i - kBefore) + O::kRadius; }
};

// Calls f(row) for the query rows whose windows hold a strip of keys; the first of them is row `first` of the result.
// The rows before the strip are skipped if none of them is in the result, and so are those after it.
template <class O, int Strip, class F>
__device__ void each_query_row(int first, int height, F f) {
  using Window = QueryWindow<O, Strip>;
  constexpr int kOwnKeys = Window::kBefore + (Strip - 1) / O::kStride + 1;
  auto rows = [&](auto range) {
#pragma unroll
    for (int i = range.kFrom; i < range.kTo; ++i) {
      if (O::kLeavesOut && (first + i < 0 || first + i >= height)) continue;
      f(i);
    }
  };
  if (first + Window::kBefore - 1 >= 0) rows(Range<0, Window::kBefore>());
  rows(Range<Window::kBefore, kOwnKeys>());
  if (first + kOwnKeys < height) rows(Range<kOwnKeys, Window::kRows>());
}

}  // namespace robust_lr::cuda
