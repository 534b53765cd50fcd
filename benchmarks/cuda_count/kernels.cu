// The kernels that LR-Net-26 launches in bf16, whose instructions benchmarks/cuda_count.py counts.
#include "../../csrc/cuda/local_relation/run_backward.h"
#include "../../csrc/cuda/local_relation/run_forward.h"
#include "../../csrc/cuda/stem/run_projection.h"

namespace robust_lr::cuda {

template <class X, int Stride>
void take() {
  using O = Options<SquaredDifference, true, 7, Stride>;
  auto instantiate = [](auto... kernels) { (void(kernels), ...); };
  constexpr bool kStem = std::is_same_v<X, Stem<float>>;
  instantiate(forward_strips<BFloat16, X, O>, backward_queries<BFloat16, X, O>,
              backward_keys<BFloat16, X, O, false, kStem>, backward_keys<BFloat16, X, O, true, kStem>);
  if (kStem) instantiate(backward_keys<BFloat16, X, O, true, false>);
}

void take_all() {
  take<Image<const BFloat16>, 1>();
  take<Image<const BFloat16>, 2>();
  take<Stem<float>, 2>();
  auto instantiate = [](auto... kernels) { (void(kernels), ...); };
  instantiate(project<BFloat16>, image_gradient<BFloat16>, weights_gradient<BFloat16>);
  instantiate(project_products<BFloat16>, image_gradient_products<BFloat16>, weights_gradient_products<BFloat16>);
}

}  // namespace robust_lr::cuda
