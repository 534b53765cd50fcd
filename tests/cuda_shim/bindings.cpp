// csrc/cuda/bindings.cpp for CPU tensors, as torch.ops.robust_lr_bindings: its calls for devices and streams go to
// stand-ins. A kernel can be launched on the stand-in's stream only, and only while the device is guarded.
#define aoti_torch_create_device_guard shim_create_device_guard
#define aoti_torch_delete_device_guard shim_delete_device_guard
#define aoti_torch_get_current_cuda_stream shim_get_current_stream
#define USE_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../../csrc/cuda/operators.h"
#include "device.h"

namespace {
int guards = 0;  // at this time
char stream;
}  // namespace

extern "C" {
AOTITorchError shim_create_device_guard(std::int32_t, DeviceGuardHandle* guard) {
  ++guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&guards);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError shim_delete_device_guard(DeviceGuardHandle) {
  if (--guards == 0) shim::current_stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError shim_get_current_stream(std::int32_t, void** found) {
  if (guards == 0) return AOTI_TORCH_FAILURE;
  shim::current_stream = &stream;
  *found = &stream;
  return AOTI_TORCH_SUCCESS;
}
}

#define is_cuda is_cpu
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(robust_lr_bindings, CPU, m, 0)
#include "../../csrc/cuda/bindings.cpp"
