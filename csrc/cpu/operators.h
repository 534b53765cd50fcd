// The operators for CPU tensors, with the arguments of schema.h.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "../local_relation.h"

namespace robust_lr::cpu {

std::tuple<Tensor, Tensor> local_relation(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                          const RelationOptions& options);

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k,
                                                                   std::optional<Tensor> geo, Tensor y, Tensor stats,
                                                                   const RelationOptions& options, bool needs_geo);

std::tuple<Tensor, Tensor> joined_relation_backward(Tensor dy, Tensor x, Tensor qk, std::optional<Tensor> geo, Tensor y,
                                                    Tensor stats, const RelationOptions& options);

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_relation(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                         std::optional<Tensor> geo, const RelationOptions& options);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_relation_backward(
    Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, std::optional<Tensor> geo, Tensor y, Tensor q,
    Tensor k, Tensor stats, const RelationOptions& options, bool needs_image, bool needs_weights);

Tensor pack_convolution(Tensor weight, bool transposed, bool bfloat16);

Tensor convolution(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> shortcut, Index outputs,
                   Index size, Index stride, Index padding, bool relu);

Tensor convolution_gradient(Tensor dy, Tensor packed, std::optional<Tensor> shortcut, std::optional<Tensor> mask,
                            Index inputs, Index height, Index width, Index size, Index stride, Index padding);

std::tuple<Tensor, Tensor> folded_block(Tensor x, const std::vector<Tensor>& parameters,
                                        const std::vector<Index>& numbers);

Tensor folded_block_gradient(Tensor dy, Tensor x, Tensor out, Tensor kept, const std::vector<Tensor>& parameters,
                             const std::vector<Index>& numbers);

bool has_bfloat16_products();

Tensor image_gradient(Tensor dy, Tensor weight, Index height, Index width, Index stride, Index padding);

}  // namespace robust_lr::cpu
