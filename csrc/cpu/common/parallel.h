// Work shared between threads.
#pragma once

#include <algorithm>
#include <functional>

#include "../../problem.h"

namespace robust_lr::cpu {

// Calls f(begin, end) for parts of [0, count) on PyTorch's threads. This is all that kernels use of PyTorch.
void parallel_for(Index count, const std::function<void(Index, Index)>& f);
Index thread_count();

// Returns the number of rows of y in a task: less than a block's if there are too few blocks to keep all threads busy.
inline Index rows_of_task(const Problem& p, Index blocks) {
  const Index threads = thread_count();
  const Index wanted = threads > 1 && blocks > 0 ? (4 * threads + blocks - 1) / blocks : 1;
  return std::max((p.out_height + wanted - 1) / wanted, std::min(p.kernel, p.out_height));
}

// Calls run(block number, first row, last row) for every task. `make_task`, given the most rows that a task has,
// returns `run`; it is called once for the tasks that a thread does one after the other, which can so share memory.
template <class F>
void each_band(const Problem& p, Index blocks, F make_task) {
  const Index rows = rows_of_task(p, blocks), bands = (p.out_height + rows - 1) / rows;
  parallel_for(blocks * bands, [&](Index begin, Index end) {
    auto run = make_task(std::min(rows, p.out_height));
    for (Index task = begin; task < end; ++task) {
      const Index first = task % bands * rows;
      run(task / bands, first, std::min(first + rows, p.out_height));
    }
  });
}

}  // namespace robust_lr::cpu
