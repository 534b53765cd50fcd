// Checks of arguments, which the stem's operators of every backend share.
#pragma once

#include "local_relation.h"

namespace robust_lr {

inline Problem describe_stem(const Tensor& image, const Tensor& transform, const Tensor& query, const Tensor& key,
                             const std::optional<Tensor>& geo, const RelationOptions& o) {
  STD_TORCH_CHECK(image.dim() == 4 && image.size(1) >= 1 && image.size(1) <= kMaxInputs && image.is_contiguous(),
                  "stem_relation: image must be contiguous, with 1 to 4 channels");
  STD_TORCH_CHECK(transform.dim() == 2 && transform.size(1) == image.size(1) + 1 && transform.is_contiguous(),
                  "stem_relation: transform must be contiguous [channels, inputs + 1]");
  const Index channels = transform.size(0);
  for (const Tensor* weights : {&query, &key})
    STD_TORCH_CHECK(weights->dim() == 2 && weights->size(1) == channels && weights->size(0) == query.size(0) &&
                        weights->is_contiguous(),
                    "stem_relation: query and key must be contiguous [groups * d, channels]");
  const Problem p = describe(image.size(0), channels, image.size(2), image.size(3), query.size(0), geo, o);
  STD_TORCH_CHECK(p.components >= 1 && query.size(0) == p.groups * p.components,
                  "stem_relation: query and key must have a multiple of the groups");
  return p;
}

inline void check_projections(const Problem& p, const Tensor& query, const Tensor& q, const Tensor& k) {
  STD_TORCH_CHECK(has_shape(q, p.batch, query.size(0), p.out_height, p.out_width) &&
                      has_shape(k, p.batch, query.size(0), p.height, p.width),
                  "stem_relation_backward: q and k must be what stem_relation returned");
}

}  // namespace robust_lr
