// Checks of arguments and result tensors, which the operators of every backend share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <type_traits>

#include "problem.h"

namespace robust_lr {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The options of the operators, in the order of schema.h.
struct RelationOptions {
  Index kernel, stride, shared, composability;
  bool softmax, mask;
};

// The problem of x [batch, channels, height, width], for q and k of `transforms` channels.
inline Problem describe(Index batch, Index channels, Index height, Index width, Index transforms,
                        const std::optional<Tensor>& geo, const RelationOptions& o) {
  STD_TORCH_CHECK(o.kernel >= 1 && o.kernel % 2 == 1 && o.stride >= 1 && o.shared >= 1 && o.composability >= 0 &&
                      o.composability <= 2,
                  "local_relation: an option is out of range");
  STD_TORCH_CHECK(height >= 1 && width >= 1, "local_relation: the image has no pixels");
  Problem p;
  p.batch = batch, p.channels = channels, p.height = height, p.width = width;
  p.groups = (p.channels + o.shared - 1) / o.shared;
  p.components = p.groups > 0 ? transforms / p.groups : 0;
  p.out_height = (p.height + o.stride - 1) / o.stride, p.out_width = (p.width + o.stride - 1) / o.stride;
  p.kernel = o.kernel, p.stride = o.stride;
  p.shared = std::min(o.shared, p.channels);
  p.composability = static_cast<Composability>(o.composability);
  p.softmax = o.softmax;
  // Zeros around the image only matter to the softmax's total.
  p.padding = o.softmax && !o.mask ? o.kernel / 2 : 0;
  STD_TORCH_CHECK(!geo || (geo->dim() == 3 && geo->size(0) == p.groups && geo->size(1) == o.kernel &&
                           geo->size(2) == o.kernel && geo->is_contiguous()),
                  "local_relation: geo must be contiguous [groups, K, K]");
  return p;
}

inline bool has_shape(const Tensor& t, Index n, Index c, Index h, Index w) {
  return t.dim() == 4 && t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w;
}

inline Problem describe(const Tensor& x, const Tensor& q, const Tensor& k, const std::optional<Tensor>& geo,
                        const RelationOptions& o) {
  STD_TORCH_CHECK(x.dim() == 4 && q.dim() == 4 && k.dim() == 4, "local_relation: x, q and k must have 4 dimensions");
  const Problem p = describe(x.size(0), x.size(1), x.size(2), x.size(3), q.size(1), geo, o);
  STD_TORCH_CHECK(p.components >= 1 && has_shape(q, p.batch, p.groups * p.components, p.out_height, p.out_width) &&
                      has_shape(k, p.batch, p.groups * p.components, p.height, p.width),
                  "local_relation: the shapes of x, q and k do not fit");
  return p;
}

inline void check_results(const Problem& p, std::initializer_list<const Tensor*> results) {
  for (const Tensor* t : results) {
    STD_TORCH_CHECK(has_shape(*t, p.batch, p.channels, p.out_height, p.out_width),
                    "local_relation_backward: dy and y must have the shape of the result");
  }
}

inline void check_types(const Tensor& x, std::initializer_list<const Tensor*> others,
                        const std::optional<Tensor>& geo) {
  const ScalarType type = x.scalar_type();
  for (const Tensor* other : others)
    STD_TORCH_CHECK(other->scalar_type() == type, "local_relation: x, q, k, y and dy must have the same dtype");
  STD_TORCH_CHECK(!geo || geo->scalar_type() == (type == ScalarType::Double ? type : ScalarType::Float),
                  "local_relation: geo must be float32, or float64 where x is");
}

// An uninitialized tensor [N, c, h, w] in the dtype and memory format of `t`.
inline Tensor empty_like(const Tensor& t, Index c, Index h, Index w) {
  const bool channels_last = t.size(1) > 1 && t.stride(1) == 1 && t.stride(3) != 1;
  return torch::stable::empty({t.size(0), c, h, w}, t.scalar_type(), std::nullopt, t.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <class T>
constexpr ScalarType kWideType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class A>
const A* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const A*>(t->data_ptr()) : nullptr;
}

}  // namespace robust_lr
