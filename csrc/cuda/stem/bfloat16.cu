#include "../local_relation/run_backward.h"
#include "../local_relation/run_forward.h"
#include "run_projection.h"

namespace robust_lr::cuda {
template void run_forward(const ForwardArguments<BFloat16, Stem<WideOf<BFloat16>>>&, Stream);
template void run_backward(const BackwardArguments<BFloat16, Stem<WideOf<BFloat16>>>&, Stream);
template Parts parts_of(const BackwardArguments<BFloat16, Stem<WideOf<BFloat16>>>&);
template void run_projection(const Projection<BFloat16>&, Stream);
template void run_image_gradient(const Projection<BFloat16>&, const WideOf<BFloat16>*, Index, WideOf<BFloat16>*,
                                 Stream);
template void run_weights_gradient(const Projection<BFloat16>&, WideOf<BFloat16>*, WideOf<BFloat16>*, Stream);
template Index pixel_parts(const Projection<BFloat16>&);
template Index row_parts(const Projection<BFloat16>&);
}  // namespace robust_lr::cuda
