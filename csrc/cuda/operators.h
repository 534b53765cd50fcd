// The operators on a CUDA stream. What calls them chooses the device.
#pragma once

#include <optional>
#include <tuple>

#include "../local_relation.h"
#include "common/arguments.h"

namespace robust_lr::cuda {

std::tuple<Tensor, Tensor> local_relation(Stream stream, Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                          const RelationOptions& options);

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Stream stream, Tensor dy, Tensor x, Tensor q,
                                                                   Tensor k, std::optional<Tensor> geo, Tensor y,
                                                                   Tensor stats, const RelationOptions& options,
                                                                   bool needs_geo);

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_relation(Stream stream, Tensor image, Tensor transform, Tensor query,
                                                         Tensor key, std::optional<Tensor> geo,
                                                         const RelationOptions& options);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_relation_backward(
    Stream stream, Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, std::optional<Tensor> geo,
    Tensor y, Tensor q, Tensor k, Tensor stats, const RelationOptions& options, bool needs_image, bool needs_weights);

}  // namespace robust_lr::cuda
