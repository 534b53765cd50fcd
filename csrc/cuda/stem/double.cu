#include "../local_relation/run_backward.h"
#include "../local_relation/run_forward.h"
#include "run_projection.h"

namespace robust_lr::cuda {
template void run_forward(const ForwardArguments<double, Stem<WideOf<double>>>&, Stream);
template void run_backward(const BackwardArguments<double, Stem<WideOf<double>>>&, Stream);
template Parts parts_of(const BackwardArguments<double, Stem<WideOf<double>>>&);
template void run_projection(const Projection<double>&, Stream);
template void run_image_gradient(const Projection<double>&, const WideOf<double>*, Index, WideOf<double>*, Stream);
template void run_weights_gradient(const Projection<double>&, WideOf<double>*, WideOf<double>*, Stream);
template Index pixel_parts(const Projection<double>&);
template Index row_parts(const Projection<double>&);
}  // namespace robust_lr::cuda
