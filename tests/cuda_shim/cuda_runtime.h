// Just enough of CUDA, on the CPU, to run the kernels of csrc/cuda as they are.
//
// Blocks run one after another. The threads of a block are fibers: each runs until it waits for others, at a barrier or
// a shuffle, or ends. What goes wrong on a GPU because threads are not in step goes wrong here, too: shared memory is
// full of NaN to begin with, and every operator runs in both orders of blocks and threads. Writing beyond the shared
// memory that was asked for ends the process. The names of the kernels that are launched are written to the file that
// CUDA_SHIM_LOG names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __host__
#ifndef __device__  // the detector wants these functions inlined
#define __device__
#endif
#define __global__
#define __shared__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 blockIdx, blockDim, threadIdx;

namespace shim {
void synchronize_block(const char* file, int line);
float shuffle_xor(float value, int lanes);
unsigned shuffle_from(unsigned value, int lane);
void multiply(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]);
void log_launch(const void* kernel);
void allow_shared_memory(const void* kernel, int bytes);
bool can_launch(const void* kernel, std::size_t shared_bytes, const void* stream);
void turn_order(bool opposite);
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);

// One thread of a kernel that was compiled in another way, for the addresses of its parameters.
using Translation = void (*)(const void* const* parameters);

// Returns the translation of a kernel, or null; none is looked for where this is null.
inline Translation (*find_translation)(const void* kernel) = nullptr;
}  // namespace shim

#define __syncthreads() shim::synchronize_block(__FILE__, __LINE__)
inline float __shfl_xor_sync(unsigned, float value, int lanes) { return shim::shuffle_xor(value, lanes); }
inline unsigned __shfl_sync(unsigned, unsigned value, int lane) { return shim::shuffle_from(value, lane); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration"; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  shim::allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  struct CUstream_st* stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024 ||
      !shim::can_launch(reinterpret_cast<const void*>(kernel), config->dynamicSmemBytes, config->stream))
    return cudaErrorInvalidConfiguration;
  shim::log_launch(reinterpret_cast<const void*>(kernel));
  const auto pointer = reinterpret_cast<const void*>(kernel);
  const shim::Translation translation = shim::find_translation ? shim::find_translation(pointer) : nullptr;
  shim::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] {
    if (translation == nullptr) return kernel(arguments...);
    const std::tuple<Parameters...> values(arguments...);
    std::apply(
        [&](const auto&... each) {
          const void* const addresses[] = {&each...};
          translation(addresses);
        },
        values);
  });
  return cudaSuccess;
}
