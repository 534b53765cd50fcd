#include "run_backward.h"

namespace robust_lr::cuda {
template void run_backward(const BackwardArguments<BFloat16>&, Stream);
template Parts parts_of(const BackwardArguments<BFloat16>&);
}  // namespace robust_lr::cuda
