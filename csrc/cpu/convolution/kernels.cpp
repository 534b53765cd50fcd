// The kernels of convolution.h, without PyTorch.
#include "convolution.h"

namespace robust_lr::cpu {

ROBUST_LR_CONVOLUTIONS();

}  // namespace robust_lr::cpu
