// Sums over the warps of a block in a fixed order, so that they are the same every time.
#pragma once

#include "tile.h"

namespace robust_lr::cuda {

// Distance in floats between the terms of one sum and those of the next; each thread has one term of every sum. Where a
// block has several groups, the padding leaves at most two-way bank conflicts when terms are read.
constexpr int kSlotPitch = 128 + 4;

// For each entry and group `g`, adds up what the group's threads left in `slots` and calls f(entry, g, sum). Only the
// `count` threads from first(entry) on are included; each round of the loop adds `AtOnce` terms.
template <int AtOnce, class First, class F>
__device__ void sum_threads(const float* slots, int entries, const TileShape& tile, int count, First first, F f) {
  __syncthreads();
  const int g = threadIdx.x & (tile.groups - 1), step = int(blockDim.x) >> tile.group_shift;
#pragma unroll 1
  for (int entry = int(threadIdx.x) >> tile.group_shift; entry < entries; entry += step) {
    const float* const own = slots + entry * kSlotPitch + first(entry) + g;
    float sum = 0;
#pragma unroll 1
    for (int t = 0; t < count; t += AtOnce * tile.groups) {
#pragma unroll
      for (int i = 0; i < AtOnce; ++i) sum += own[t + i * tile.groups];
    }
    f(entry, g, sum);
  }
}

// Adds up parts [warps of the block, entries], which are in shared memory, and calls f(entry, sum).
template <class A, class F>
__device__ void sum_warps(const A* parts, int entries, F f) {
  __syncthreads();
  for (int i = threadIdx.x; i < entries; i += blockDim.x) {
    A sum = 0;
    for (int warp = 0; warp < int(blockDim.x / 32); ++warp) sum += parts[warp * entries + i];
    f(i, sum);
  }
}

}  // namespace robust_lr::cuda
