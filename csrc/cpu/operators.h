// The operators for CPU tensors, with the arguments of schema.h.
#pragma once

#include <optional>
#include <tuple>

#include "../local_relation.h"

namespace robust_lr::cpu {

std::tuple<Tensor, Tensor> local_relation(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel,
                                          Index stride, Index shared, Index composability, bool softmax, bool mask);

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k,
                                                                   std::optional<Tensor> geo, Tensor y, Tensor stats,
                                                                   Index kernel, Index stride, Index shared,
                                                                   Index composability, bool softmax, bool mask,
                                                                   bool needs_geo);

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_relation(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                         std::optional<Tensor> geo, Index kernel, Index stride,
                                                         Index shared, Index composability, bool softmax, bool mask);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_relation_backward(
    Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, std::optional<Tensor> geo, Tensor y, Tensor q,
    Tensor k, Tensor stats, Index kernel, Index stride, Index shared, Index composability, bool softmax, bool mask,
    bool needs_image, bool needs_weights);

Tensor pack_convolution(Tensor weight, bool transposed);

Tensor convolution(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> shortcut, Index outputs,
                   Index size, Index stride, Index padding, bool relu);

Tensor convolution_gradient(Tensor dy, Tensor packed, Index inputs, Index height, Index width, Index size, Index stride,
                            Index padding);

Tensor image_gradient(Tensor dy, Tensor weight, Index height, Index width, Index stride, Index padding);

}  // namespace robust_lr::cpu
