#include "stem_kernels.h"

namespace robust_lr {
ROBUST_LR_STEM_KERNELS(, double);
}
