// The CPU kernels that the operators call, compiled for float and for double in separate files.
#pragma once

#include "../common/parallel.h"
#include "backward.h"
#include "forward.h"

namespace robust_lr::cpu {

template <class A>
void run_forward(const ForwardTensors<A>& tensors) {
  each_band(tensors.p, Block<A>::count(tensors.p), [&](Index rows) {
    return [&tensors, task = ForwardTask<A>(tensors, rows)](Index number, Index first, Index last) mutable {
      task.run(Block<A>(tensors.p, number), first, last);
    };
  });
}

template <class A>
void run_backward(const BackwardTensors<A>& tensors) {
  parallel_for(Block<A>::count(tensors.p), [&](Index begin, Index end) {
    BackwardTask<A> task(tensors);
    for (Index number = begin; number < end; ++number) task.run(Block<A>(tensors.p, number));
  });
}

#define ROBUST_LR_KERNELS(prefix, A)                          \
  prefix template void run_forward(const ForwardTensors<A>&); \
  prefix template void run_backward(const BackwardTensors<A>&)

ROBUST_LR_KERNELS(extern, float);
ROBUST_LR_KERNELS(extern, double);

}  // namespace robust_lr::cpu
