// The kernels that LR-Net-26 launches in bf16, to PTX.
#include "../../benchmarks/cuda_count/kernels.cu"
//
#include "../../csrc/cuda/common/sum.cu"
