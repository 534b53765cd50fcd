// The sum of parts in a fixed order, so that it is the same every time.
#pragma once

#include "tile.h"

namespace robust_lr::cuda {

constexpr int kSumColumns = 32, kSumRows = 16;

// sums[i] = the sum of parts[.][i], a block for kSumColumns of them.
template <class A>
__global__ void __launch_bounds__(kSumColumns * kSumRows) sum_parts(const A* parts, int count, Index entries, A* sums) {
  auto rows = reinterpret_cast<double(*)[kSumColumns]>(shared_memory);  // [kSumRows]
  const int row = threadIdx.x / kSumColumns, column = threadIdx.x % kSumColumns;
  const Index entry = blockIdx.x * Index(kSumColumns) + column;
  double sum = 0;
  if (entry < entries) {
    for (int part = row; part < count; part += kSumRows) sum += parts[part * entries + entry];
  }
  rows[row][column] = sum;
  __syncthreads();
  if (row > 0 || entry >= entries) return;
  for (int r = 1; r < kSumRows; ++r) sum += rows[r][column];
  sums[entry] = A(sum);
}

}  // namespace robust_lr::cuda
