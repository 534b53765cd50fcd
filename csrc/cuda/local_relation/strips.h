// Division of work among the strip kernels: a thread owns a vertical strip of pixels of one group, a block owns the
// strips of some groups, columns and rows of one image, and keeps all that their windows hold in shared memory.
//
// A value read from the tile serves every pixel of the strip whose window holds it.
#pragma once

#include "../stem/stem.h"
#include "weights.h"

namespace robust_lr::cuda {

constexpr int kThreads = 128;  // in a block, at most
constexpr int kWarps = kThreads / 32;
constexpr int kResident = 3;  // blocks at once on a multiprocessor, at least: leaves 168 registers to a thread

// Compile-time options of a strip kernel.
template <class Phi_, bool Softmax, int Size, int Stride>
struct Options {
  using Phi = Phi_;
  static constexpr bool kSoftmax = Softmax;
  static constexpr int kSize = Size, kRadius = Size / 2, kStride = Stride;
};

// The division of an image into blocks.
struct Blocking {
  int groups, columns, strips;                    // of a block; groups is a power of two
  int group_blocks, column_blocks, strip_blocks;  // of an image

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
    first_group = block % b.group_blocks * b.groups, block /= b.group_blocks;
    first_column = block % b.column_blocks * b.columns, block /= b.column_blocks;
    first_strip = block % b.strip_blocks * b.strips, n = block / b.strip_blocks;
    int thread = threadIdx.x;
    g = thread % b.groups, thread /= b.groups;
    c = thread % b.columns, s = thread / b.columns;
    group = first_group + g, column = first_column + c, strip = first_strip + s;
    inside = s < b.strips;
  }
};

// The key pixels in the windows of a block's query pixels, in strips of `Strip`.
template <class O, int Strip>
struct KeyWindow {
  static constexpr int kRows = (Strip - 1) * O::kStride + O::kSize;  // in the windows of one strip

  __host__ __device__ static Tile tile(const Blocking& b) {
    Tile tile{};
    tile.rows = (b.strips * Strip - 1) * O::kStride + O::kSize;
    tile.columns = (b.columns - 1) * O::kStride + O::kSize;
    tile.groups = b.groups;
    return tile;
  }
  __device__ static Tile tile(const Blocking& b, const Place& place) {
    Tile tile = KeyWindow::tile(b);
    tile.n = place.n, tile.group = place.first_group;
    tile.row = place.first_strip * Strip * O::kStride - O::kRadius;
    tile.column = place.first_column * O::kStride - O::kRadius;
    return tile;
  }
};

// Shared memory of a block: its key pixels.
template <class T>
struct KeyMemory {
  Piece<T>* x;
  float *keys, *prior;

  __device__ explicit KeyMemory(int size) {
    x = reinterpret_cast<Piece<T>*>(shared_memory);
    keys = reinterpret_cast<float*>(x + Piece<T>::kCount * size);
    prior = keys + size;
  }
  static size_t bytes(const Tile& tile, int taps) {
    return tile.size() * (sizeof(T) * kChannels + sizeof(float)) + taps * tile.groups * sizeof(float);
  }
  template <class Arguments>
  __device__ void load(const Tile& tile, const Arguments& a) const {
    const int groups = int(a.p.groups), height = int(a.p.height), width = int(a.p.width);
    load_vectors(tile, a.x, a.p, height, width, x);
    load_scalars(tile, a.k, groups, height, width, keys);
    load_prior(tile, a.geo, a.p, prior);
    finish_loading();
  }
};

// The query pixels whose windows hold a block's key pixels, in strips of `Strip`. Strips start a multiple of the stride
// away from the first query's center, so that which taps a key row meets is known when compiling.
template <class O, int Strip>
struct QueryWindow {
  static_assert(Strip % O::kStride == 0);
  static constexpr int kBefore = O::kRadius / O::kStride;  // queries above a key that hold it
  static constexpr int kRows = (Strip - 1 + O::kRadius) / O::kStride + kBefore + 1;

  __host__ __device__ static Tile tile(const Blocking& b) {
    Tile tile{};
    tile.rows = (b.strips * Strip - 1 + O::kRadius) / O::kStride + kBefore + 1;
    tile.columns = (b.columns - 1 + O::kRadius) / O::kStride + kBefore + 1;
    tile.groups = b.groups;
    return tile;
  }
  // For keys that start at the row and column -lead of the image.
  __device__ static Tile tile(const Blocking& b, const Place& place, int lead) {
    Tile tile = QueryWindow::tile(b);
    tile.n = place.n, tile.group = place.first_group;
    tile.row = (place.first_strip * Strip - lead) / O::kStride - kBefore;
    tile.column = (place.first_column - lead) / O::kStride - kBefore;
    return tile;
  }
  // The tap of key `s` of a strip in the window of query `i` of the strip's.
  __device__ static constexpr int tap(int s, int i) { return s - O::kStride * (i - kBefore) + O::kRadius; }
};

}  // namespace robust_lr::cuda
