#include "../local_relation/run_backward.h"
#include "../local_relation/run_forward.h"
#include "run_projection.h"

namespace robust_lr::cuda {
template void run_forward(const ForwardArguments<float, Stem<WideOf<float>>>&, Stream);
template void run_backward(const BackwardArguments<float, Stem<WideOf<float>>>&, Stream);
template Parts parts_of(const BackwardArguments<float, Stem<WideOf<float>>>&);
template void run_projection(const Projection<float>&, Stream);
template void run_image_gradient(const Projection<float>&, const WideOf<float>*, Index, WideOf<float>*, Stream);
template void run_weights_gradient(const Projection<float>&, WideOf<float>*, WideOf<float>*, Stream);
template Index pixel_parts(const Projection<float>&);
template Index row_parts(const Projection<float>&);
}  // namespace robust_lr::cuda
