#include "kernels.h"

namespace robust_lr::cpu {
ROBUST_LR_KERNELS(, float);
}
