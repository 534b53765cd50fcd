// The operators' schemas. Backends register their kernels in files of their own.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(robust_lr, m) {
  // composability counts from 0 in the order of robust_lr/reference.py; `mask` is border == "mask". `stats` is what the
  // backend's backward needs besides y: its layout is the backend's own.
  m.def(
      "local_relation(Tensor x, Tensor q, Tensor k, Tensor? geo, int kernel_size, int stride, int channels_per_group, "
      "int composability, bool softmax, bool mask) -> (Tensor y, Tensor stats)");
  m.def(
      "local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k, Tensor? geo, Tensor y, Tensor stats, "
      "int kernel_size, int stride, int channels_per_group, int composability, bool softmax, bool mask, bool needs_geo) "
      "-> (Tensor dx, Tensor dq, Tensor dk, Tensor dgeo)");
}
