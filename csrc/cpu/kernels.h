// The CPU kernels as the operators call them: compiled for float and for double in a file each.
#pragma once

#include <functional>

#include "backward.h"
#include "forward.h"

namespace robust_lr {

// Calls f(begin, end) for parts of [0, count) on PyTorch's threads. Kernels know no more of PyTorch than this.
void parallel_for(Index count, const std::function<void(Index, Index)>& f);
Index thread_count();

template <class A>
Index block_count(const Problem& p) {
  return (p.batch * p.groups + kLanes<A> - 1) / kLanes<A>;
}

template <class A>
void run_forward(const ForwardTensors<A>& tensors) {
  const Problem& p = tensors.p;
  // Bands of rows, where there are too few blocks to keep all threads busy.
  const Index blocks = block_count<A>(p), threads = thread_count();
  const Index wanted = threads > 1 && blocks > 0 ? (4 * threads + blocks - 1) / blocks : 1;
  const Index rows = std::max((p.out_height + wanted - 1) / wanted, std::min(p.kernel, p.out_height));
  const Index bands = (p.out_height + rows - 1) / rows;
  parallel_for(blocks * bands, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index first = task % bands * rows;
      ForwardTask<A>(tensors, task / bands, first, std::min(first + rows, p.out_height)).run();
    }
  });
}

template <class A>
void run_backward(const BackwardTensors<A>& tensors) {
  parallel_for(block_count<A>(tensors.p), [&](Index begin, Index end) {
    for (Index block = begin; block < end; ++block) BackwardTask<A>(tensors, block).run();
  });
}

#define ROBUST_LR_KERNELS(prefix, A)                          \
  prefix template void run_forward(const ForwardTensors<A>&); \
  prefix template void run_backward(const BackwardTensors<A>&)

ROBUST_LR_KERNELS(extern, float);
ROBUST_LR_KERNELS(extern, double);

}  // namespace robust_lr
