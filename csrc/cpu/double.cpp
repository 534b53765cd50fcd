#include "kernels.h"

namespace robust_lr {
ROBUST_LR_KERNELS(, double);
}
