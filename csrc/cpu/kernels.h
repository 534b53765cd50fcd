// The CPU kernels as the operators call them: templates on the element type, compiled in a file for each.
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

template <class T>
void run_forward(const ForwardTensors<T>& tensors) {
  const Problem& p = tensors.p;
  // Bands of rows, where there are too few blocks to keep all threads busy.
  const Index blocks = block_count<WideOf<T>>(p), threads = thread_count();
  const Index wanted = threads > 1 && blocks > 0 ? (4 * threads + blocks - 1) / blocks : 1;
  const Index rows = std::max((p.out_height + wanted - 1) / wanted, std::min(p.kernel, p.out_height));
  const Index bands = (p.out_height + rows - 1) / rows;
  parallel_for(blocks * bands, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index first = task % bands * rows;
      ForwardTask<T>(tensors, task / bands, first, std::min(first + rows, p.out_height)).run();
    }
  });
}

template <class T>
void run_backward(const BackwardTensors<T>& tensors) {
  parallel_for(block_count<WideOf<T>>(tensors.p), [&](Index begin, Index end) {
    for (Index block = begin; block < end; ++block) BackwardTask<T>(tensors, block).run();
  });
}

#define ROBUST_LR_KERNELS(prefix, T)                           \
  prefix template void run_forward(const ForwardTensors<T>&);  \
  prefix template void run_backward(const BackwardTensors<T>&)

ROBUST_LR_KERNELS(extern, float);
ROBUST_LR_KERNELS(extern, double);
ROBUST_LR_KERNELS(extern, BFloat16);

}  // namespace robust_lr
