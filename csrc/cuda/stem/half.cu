#include "../local_relation/run_backward.h"
#include "../local_relation/run_forward.h"
#include "run_projection.h"

namespace robust_lr::cuda {
template void run_forward(const ForwardArguments<Half, Stem<WideOf<Half>>>&, Stream);
template void run_backward(const BackwardArguments<Half, Stem<WideOf<Half>>>&, Stream);
template Parts parts_of(const BackwardArguments<Half, Stem<WideOf<Half>>>&);
template void run_projection(const Projection<Half>&, Stream);
template void run_image_gradient(const Projection<Half>&, const WideOf<Half>*, Index, WideOf<Half>*, Stream);
template void run_weights_gradient(const Projection<Half>&, WideOf<Half>*, WideOf<Half>*, Stream);
template Index pixel_parts(const Projection<Half>&);
template Index row_parts(const Projection<Half>&);
}  // namespace robust_lr::cuda
