// Registers the operators for CPU tensors.
#include "operators.h"

namespace robust_lr::cpu {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel, Index stride,
                                   Index shared, Index composability, bool softmax, bool mask) {
  return local_relation(x, q, k, geo, {kernel, stride, shared, composability, softmax, mask});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                                    Tensor y, Tensor stats, Index kernel, Index stride, Index shared,
                                                    Index composability, bool softmax, bool mask, bool needs_geo) {
  return local_relation_backward(dy, x, q, k, geo, y, stats, {kernel, stride, shared, composability, softmax, mask},
                                 needs_geo);
}

std::tuple<Tensor, Tensor> joined_backward(Tensor dy, Tensor x, Tensor qk, std::optional<Tensor> geo, Tensor y,
                                           Tensor stats, Index kernel, Index stride, Index shared, Index composability,
                                           bool softmax, bool mask) {
  return joined_relation_backward(dy, x, qk, geo, y, stats, {kernel, stride, shared, composability, softmax, mask});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_forward(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                        std::optional<Tensor> geo, Index kernel, Index stride,
                                                        Index shared, Index composability, bool softmax, bool mask) {
  return stem_relation(image, transform, query, key, geo, {kernel, stride, shared, composability, softmax, mask});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_backward(Tensor dy, Tensor image, Tensor transform,
                                                                 Tensor query, Tensor key, std::optional<Tensor> geo,
                                                                 Tensor y, Tensor q, Tensor k, Tensor stats,
                                                                 Index kernel, Index stride, Index shared,
                                                                 Index composability, bool softmax, bool mask,
                                                                 bool needs_image, bool needs_weights) {
  return stem_relation_backward(dy, image, transform, query, key, geo, y, q, k, stats,
                                {kernel, stride, shared, composability, softmax, mask}, needs_image, needs_weights);
}

}  // namespace
}  // namespace robust_lr::cpu

STABLE_TORCH_LIBRARY_IMPL(robust_lr, CPU, m) {
  m.impl("local_relation", TORCH_BOX(&robust_lr::cpu::forward));
  m.impl("local_relation_backward", TORCH_BOX(&robust_lr::cpu::backward));
  m.impl("joined_relation_backward", TORCH_BOX(&robust_lr::cpu::joined_backward));
  m.impl("stem_relation", TORCH_BOX(&robust_lr::cpu::stem_forward));
  m.impl("stem_relation_backward", TORCH_BOX(&robust_lr::cpu::stem_backward));
  m.impl("pack_convolution", TORCH_BOX(&robust_lr::cpu::pack_convolution));
  m.impl("convolution", TORCH_BOX(&robust_lr::cpu::convolution));
  m.impl("convolution_gradient", TORCH_BOX(&robust_lr::cpu::convolution_gradient));
  m.impl("folded_block", TORCH_BOX(&robust_lr::cpu::folded_block));
  m.impl("folded_block_gradient", TORCH_BOX(&robust_lr::cpu::folded_block_gradient));
  m.impl("image_gradient", TORCH_BOX(&robust_lr::cpu::image_gradient));
}

// It has no tensor whose device could choose the backend.
STABLE_TORCH_LIBRARY_IMPL(robust_lr, CompositeExplicitAutograd, m) {
  m.impl("has_bfloat16_products", TORCH_BOX(&robust_lr::cpu::has_bfloat16_products));
}
