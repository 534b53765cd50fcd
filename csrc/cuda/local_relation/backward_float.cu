#include "run_backward.h"

namespace robust_lr::cuda {
template void run_backward(const BackwardArguments<float>&, Stream);
template Parts parts_of(const BackwardArguments<float>&);
}  // namespace robust_lr::cuda
