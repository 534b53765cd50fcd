// Tensors as the CUDA kernels take them.
#pragma once

#include "../../local_relation.h"
#include "arguments.h"

namespace robust_lr::cuda {

template <class T>
constexpr Index kElementBytes = std::is_same_v<T, WideOf<T>> ? sizeof(WideOf<T>) : 2;

// `shared` is the number of channels in a group.
template <class T>
Image<T> image(const Tensor& t, Index shared = 1) {
  using Element = std::remove_const_t<T>;
  Image<T> image{static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3),
                 int(kElementBytes<Element>)};
  for (const Index bytes : {8, 16}) {
    const Index elements = bytes / kElementBytes<Element>;
    bool aligned = image.channel == 1 && reinterpret_cast<std::uintptr_t>(image.data) % bytes == 0;
    for (const Index count : {image.batch, image.row, image.column, shared, t.size(1)})
      aligned = aligned && count % elements == 0;
    if (elements > 1 && aligned) image.bytes = int(bytes);
  }
  return image;
}

inline Tensor empty(const Tensor& like, ScalarType type, Index size) {
  return torch::stable::empty({size}, type, std::nullopt, like.device());
}

template <class A>
A* data(const std::optional<Tensor>& t) {
  return t && t->numel() > 0 ? static_cast<A*>(t->data_ptr()) : nullptr;
}

inline Index windows(const Problem& p) { return p.batch * p.groups * p.out_height * p.out_width; }

// Calls f with a null pointer to x's type.
template <class F>
auto with_type(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::Half: return f(static_cast<Half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<BFloat16*>(nullptr));
    default: STD_TORCH_CHECK(false, "local_relation: x must be float32, float64, float16 or bfloat16 on CUDA");
  }
}

}  // namespace robust_lr::cuda
