// Launches kernels and turns their errors into exceptions.
#pragma once

#include <stdexcept>
#include <string>

#include "elements.h"

namespace robust_lr::cuda {

// Shared memory that a block may take: three such blocks fit on a multiprocessor of an H100, one on any since sm_80.
constexpr size_t kMaxSharedMemory = 75 << 10;
constexpr size_t kDefaultSharedMemory = 48 << 10;  // a kernel that takes more must have its limit raised

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("local_relation: ") + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Index blocks, int threads, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error("local_relation: too large for one call; split the batch");
  if (shared_bytes > kDefaultSharedMemory)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace robust_lr::cuda
