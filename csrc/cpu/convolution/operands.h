// Tensors and weights in the form that the convolutions take.
#pragma once

#include "../common/tensors.h"
#include "convolution.h"

namespace robust_lr::cpu {

// Calls f with the `Products` for a dtype.
template <class F>
auto with_products(ScalarType type, F f) {
  switch (type) {
    case ScalarType::Float: return f(Products<float>());
    case ScalarType::Double: return f(Products<double>());
    case ScalarType::BFloat16:
#if defined(__AVX512F__)
      if (supports_bfloat16()) return f(NarrowProducts());
#endif
      STD_TORCH_CHECK(false, "convolution: this processor has no products of bfloat16");
    default: STD_TORCH_CHECK(false, "convolution: float32, float64 or bfloat16 is needed");
  }
}

// Returns true if the tensor is dense and channels-last.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  Index stride = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) > 1 && t.stride(d) != stride) return false;
    stride *= t.size(d);
  }
  return true;
}

template <class A>
Pixels<A> pixels(const Tensor& t) {
  return {static_cast<A*>(t.data_ptr()), t.size(0), t.size(2), t.size(3), t.size(1)};
}

// Checks the packed weights of a convolution of tensors of type `type`.
template <class P>
void check_weights(const Tensor& packed, ScalarType type, Index inputs, Index outputs, const Window& window) {
  STD_TORCH_CHECK(packed.scalar_type() == type, "convolution: the packed weights must have the dtype of x (or dy)");
  STD_TORCH_CHECK(packed.is_contiguous() && packed.numel() == packed_size<P>(inputs, outputs, window.taps()),
                  "convolution: the packed weights are of another convolution");
}

template <class P>
void check_bias(const std::optional<Tensor>& bias, Index outputs) {
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == kWideType<typename P::Sum> && bias->is_contiguous() &&
                            bias->dim() == 1 && bias->size(0) == outputs),
                  "convolution: bias must be contiguous [outputs], in the dtype of x or float32 for bfloat16");
}

// An uninitialized tensor [N, channels, height, width], channels-last, in the dtype of `x`.
inline Tensor result_like(const Tensor& x, Index channels, Index height, Index width) {
  return torch::stable::empty({x.size(0), channels, height, width}, x.scalar_type(), std::nullopt, x.device(),
                              std::nullopt, MemoryFormat::ChannelsLast);
}

inline Window describe(Index size, Index stride, Index padding) {
  STD_TORCH_CHECK(size >= 1 && stride >= 1 && padding >= 0, "convolution: an option is out of range");
  return {size, stride, padding};
}

}  // namespace robust_lr::cpu
