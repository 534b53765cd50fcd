// Sums over the warps of a block in a fixed order, so that they are the same every time.
#pragma once

#include "tile.h"

namespace robust_lr::cuda {

// Floats from the terms of one sum to those of the next, each of which is one thread's: no more than two lanes that
// read them meet in a bank.
constexpr int kSlotPitch = 128 + 4;

// Calls f(entry, g, sum) with the sums over the threads of each group of what they left in `slots`: those of `count`
// threads, from first(entry) on, `AtOnce` of a group at once.
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

// Calls f(entry, sum) with the sums of [warps of the block, entries] in shared memory.
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
