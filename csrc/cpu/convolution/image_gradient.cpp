// The operator of image_gradient.h.
#include "image_gradient.h"

#include "../common/tensors.h"

namespace robust_lr::cpu {

Tensor image_gradient(Tensor dy, Tensor weight, Index height, Index width, Index stride, Index padding) {
  STD_TORCH_CHECK(dy.dim() == 4 && weight.dim() == 4 && dy.is_contiguous() && weight.is_contiguous() &&
                      dy.size(3) == weight.size(0) && weight.size(2) == weight.size(3),
                  "image_gradient: dy must be contiguous [N, H, W, C] and weight contiguous [C, inputs, K, K]");
  STD_TORCH_CHECK(dy.scalar_type() == weight.scalar_type() &&
                      (dy.scalar_type() == ScalarType::Float || dy.scalar_type() == ScalarType::Double),
                  "image_gradient: dy and weight must be both float32 or both float64");
  const Index kernel = weight.size(2);
  STD_TORCH_CHECK(stride >= 1 && padding >= 0 && height + 2 * padding >= kernel && width + 2 * padding >= kernel &&
                      dy.size(1) == (height + 2 * padding - kernel) / stride + 1 &&
                      dy.size(2) == (width + 2 * padding - kernel) / stride + 1,
                  "image_gradient: dy is not of the size that the convolution gives");
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const Index n = dy.size(0), channels = weight.size(1);
    Tensor dimage = empty<A>(dy, {n, channels, height, width});
    STD_TORCH_CHECK(run_image_gradient<A>({n, channels, height, width, dy.size(3), dy.size(1), dy.size(2), kernel,
                                           stride, padding, data<A>(dy), data<A>(weight), data<A>(dimage)}),
                    "image_gradient: 1 or 3 channels and a kernel of 3 or 7 are needed");
    return dimage;
  };
  return dy.scalar_type() == ScalarType::Float ? run(0.0f) : run(0.0);
}

}  // namespace robust_lr::cpu
