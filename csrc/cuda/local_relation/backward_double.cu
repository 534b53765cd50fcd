#include "run_backward.h"

namespace robust_lr::cuda {
template void run_backward(const BackwardArguments<double>&, Stream);
template Parts parts_of(const BackwardArguments<double>&);
}  // namespace robust_lr::cuda
