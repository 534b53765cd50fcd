// PyTorch's threads.
#include "parallel.h"

#include <torch/csrc/stable/ops.h>

namespace robust_lr::cpu {

void parallel_for(Index count, const std::function<void(Index, Index)>& f) {
  torch::stable::parallel_for(0, count, 1, f);
}

Index thread_count() { return torch::stable::get_num_threads(); }

}  // namespace robust_lr::cpu
