// The operators for CUDA tensors: on their device, and on PyTorch's current stream there.
#define USE_CUDA  // makes the stable ABI declare what it has for CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include "operators.h"

namespace robust_lr::cuda {
namespace {

class Device {
 public:
  Device(const Tensor& first, std::initializer_list<const Tensor*> others)
      : index_(first.get_device_index()), guard_(index_) {
    for (const Tensor* t : others)
      STD_TORCH_CHECK(t->is_cuda() && t->get_device_index() == index_,
                      "local_relation: tensors are on several devices");
  }

  Stream stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<Stream>(stream);
  }

 private:
  torch::stable::accelerator::DeviceIndex index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel, Index stride,
                                   Index shared, Index composability, bool softmax, bool mask) {
  const Device device(x, {&q, &k, geo ? &*geo : &x});
  return local_relation(device.stream(), x, q, k, geo, {kernel, stride, shared, composability, softmax, mask});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                                    Tensor y, Tensor stats, Index kernel, Index stride, Index shared,
                                                    Index composability, bool softmax, bool mask, bool needs_geo) {
  const Device device(x, {&dy, &q, &k, &y, &stats, geo ? &*geo : &x});
  return local_relation_backward(device.stream(), dy, x, q, k, geo, y, stats,
                                 {kernel, stride, shared, composability, softmax, mask}, needs_geo);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_forward(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                        std::optional<Tensor> geo, Index kernel, Index stride,
                                                        Index shared, Index composability, bool softmax, bool mask) {
  const Device device(image, {&transform, &query, &key, geo ? &*geo : &image});
  return stem_relation(device.stream(), image, transform, query, key, geo,
                       {kernel, stride, shared, composability, softmax, mask});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_backward(Tensor dy, Tensor image, Tensor transform,
                                                                 Tensor query, Tensor key, std::optional<Tensor> geo,
                                                                 Tensor y, Tensor q, Tensor k, Tensor stats,
                                                                 Index kernel, Index stride, Index shared,
                                                                 Index composability, bool softmax, bool mask,
                                                                 bool needs_image, bool needs_weights) {
  const Device device(image, {&dy, &transform, &query, &key, &y, &q, &k, &stats, geo ? &*geo : &image});
  return stem_relation_backward(device.stream(), dy, image, transform, query, key, geo, y, q, k, stats,
                                {kernel, stride, shared, composability, softmax, mask}, needs_image, needs_weights);
}

}  // namespace
}  // namespace robust_lr::cuda

STABLE_TORCH_LIBRARY_IMPL(robust_lr, CUDA, m) {
  m.impl("local_relation", TORCH_BOX(&robust_lr::cuda::forward));
  m.impl("local_relation_backward", TORCH_BOX(&robust_lr::cuda::backward));
  m.impl("stem_relation", TORCH_BOX(&robust_lr::cuda::stem_forward));
  m.impl("stem_relation_backward", TORCH_BOX(&robust_lr::cuda::stem_backward));
}
