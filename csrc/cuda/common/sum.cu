// Sums of parts in a fixed order, so that they are the same every time.
#include "launch.h"
#include "tile.h"

namespace robust_lr::cuda {

constexpr int kSumColumns = 32, kSumRows = 16;
constexpr int kSlice = 16 * kSumRows;  // parts that a block sums

// The sums of each kSlice of parts [count, entries], `step` apart, a block for kSumColumns of them. `sums` may be
// `parts`: then a slice's are where its first part was.
template <class A>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    sum_parts(const A* parts, Index count, Index step, Index entries, A* sums) {
  auto rows = reinterpret_cast<double (*)[kSumColumns]>(shared_memory);  // [kSumRows]
  const int row = threadIdx.x / kSumColumns, column = threadIdx.x % kSumColumns;
  const Index blocks = (entries + kSumColumns - 1) / kSumColumns, first = blockIdx.x / blocks * kSlice;
  const Index entry = blockIdx.x % blocks * kSumColumns + column;
  double sum = 0;
  if (entry < entries) {
    for (Index part = first + row; part < min(count, first + kSlice); part += kSumRows)
      sum += parts[part * step * entries + entry];
  }
  rows[row][column] = sum;
  __syncthreads();
  if (row > 0 || entry >= entries) return;
  for (int r = 1; r < kSumRows; ++r) sum += rows[r][column];
  sums[first * step * entries + entry] = A(sum);
}

template <class A>
void run_sum(A* parts, Index count, Index entries, A* sums, Stream stream) {
  const size_t bytes = kSumRows * kSumColumns * sizeof(double);
  auto launch_slices = [&](Index slices, Index step, A* to) {
    launch(sum_parts<A>, slices * ceil_div(entries, kSumColumns), kSumRows * kSumColumns, bytes, stream, parts, count,
           step, entries, to);
  };
  Index step = 1;
  for (; count > kSlice; count = ceil_div(count, kSlice), step *= kSlice)
    launch_slices(ceil_div(count, kSlice), step, parts);
  launch_slices(1, step, sums);
}

template void run_sum(float*, Index, Index, float*, Stream);
template void run_sum(double*, Index, Index, double*, Stream);

}  // namespace robust_lr::cuda
