#include "run_backward.h"

namespace robust_lr::cuda {
template void run_backward(const BackwardArguments<Half>&, Stream);
template Parts parts_of(const BackwardArguments<Half>&);
}  // namespace robust_lr::cuda
