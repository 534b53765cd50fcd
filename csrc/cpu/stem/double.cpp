#include "kernels.h"

namespace robust_lr::cpu {
ROBUST_LR_STEM_KERNELS(, double);
}
