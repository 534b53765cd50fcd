#include "run_forward.h"

namespace robust_lr::cuda {
template void run_forward(const ForwardArguments<double>&, Stream);
}
