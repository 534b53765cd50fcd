// The CPU kernels that the operators call, compiled for float and for double in separate files.
#pragma once

#include "../common/parallel.h"
#include "backward.h"
#include "forward.h"

namespace robust_lr::cpu {

template <class A>
void run_forward(const ForwardTensors<A>& tensors) {
  each_band(tensors.p, Block<A>::count(tensors.p), [&](Index number, Index first, Index last) {
    ForwardTask<A>(tensors, Block<A>(tensors.p, number), first, last).run();
  });
}

template <class A>
void run_backward(const BackwardTensors<A>& tensors) {
  parallel_for(Block<A>::count(tensors.p), [&](Index begin, Index end) {
    for (Index number = begin; number < end; ++number) BackwardTask<A>(tensors, Block<A>(tensors.p, number)).run();
  });
}

#define ROBUST_LR_KERNELS(prefix, A)                          \
  prefix template void run_forward(const ForwardTensors<A>&); \
  prefix template void run_backward(const BackwardTensors<A>&)

ROBUST_LR_KERNELS(extern, float);
ROBUST_LR_KERNELS(extern, double);

}  // namespace robust_lr::cpu
