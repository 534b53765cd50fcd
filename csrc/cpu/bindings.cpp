// Registers the operators for CPU tensors.
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(robust_lr, CPU, m) {
  m.impl("local_relation", TORCH_BOX(&robust_lr::cpu::local_relation));
  m.impl("local_relation_backward", TORCH_BOX(&robust_lr::cpu::local_relation_backward));
  m.impl("stem_relation", TORCH_BOX(&robust_lr::cpu::stem_relation));
  m.impl("stem_relation_backward", TORCH_BOX(&robust_lr::cpu::stem_relation_backward));
  m.impl("pack_convolution", TORCH_BOX(&robust_lr::cpu::pack_convolution));
  m.impl("convolution", TORCH_BOX(&robust_lr::cpu::convolution));
  m.impl("convolution_gradient", TORCH_BOX(&robust_lr::cpu::convolution_gradient));
  m.impl("image_gradient", TORCH_BOX(&robust_lr::cpu::image_gradient));
}
