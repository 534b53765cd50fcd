// Sums over the warps of a block in a fixed order, so that they are the same every time.
#pragma once

#include "tile.h"

namespace robust_lr::cuda {

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
