// Defines the operators. Backends register their kernels in files of their own.
#include <torch/csrc/stable/library.h>

#include "schema.h"

STABLE_TORCH_LIBRARY(robust_lr, m) {
  m.def(robust_lr::kForwardSchema);
  m.def(robust_lr::kBackwardSchema);
  m.def(robust_lr::kJoinedBackwardSchema);
  m.def(robust_lr::kStemForwardSchema);
  m.def(robust_lr::kStemBackwardSchema);
  m.def(robust_lr::kImageGradientSchema);
  m.def(robust_lr::kPackSchema);
  m.def(robust_lr::kBlockSchema);
  m.def(robust_lr::kBlockGradientSchema);
  m.def(robust_lr::kConvolutionSchema);
  m.def(robust_lr::kConvolutionGradientSchema);
  m.def(robust_lr::kBfloat16Schema);
}
