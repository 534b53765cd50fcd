// The operators of convolution.h.
#include "convolution.h"

#include "../common/tensors.h"

namespace robust_lr::cpu {
namespace {

template <class F>
auto with_type(const Tensor& t, F f) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double,
                  "convolution: float32 or float64 is needed");
  return t.scalar_type() == ScalarType::Float ? f(0.0f) : f(0.0);
}

// Whether all pixels follow each other in memory, channels first.
bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  Index stride = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) > 1 && t.stride(d) != stride) return false;
    stride *= t.size(d);
  }
  return true;
}

template <class A>
Pixels<A> pixels(const Tensor& t) {
  return {static_cast<A*>(t.data_ptr()), t.size(0), t.size(2), t.size(3), t.size(1)};
}

template <class A>
void check_weights(const Tensor& packed, Index inputs, Index outputs, const Window& window) {
  STD_TORCH_CHECK(
      packed.is_contiguous() && packed.numel() == Panels<A>(outputs).vectors * kLanes<A> * inputs * window.taps(),
      "convolution: the packed weights are of another convolution");
}

Window describe(Index size, Index stride, Index padding) {
  STD_TORCH_CHECK(size >= 1 && stride >= 1 && padding >= 0, "convolution: an option is out of range");
  return {size, stride, padding};
}

}  // namespace

Tensor pack_convolution(Tensor weight, bool transposed) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.size(2) == weight.size(3),
                  "convolution: weight must be contiguous [outputs, inputs, K, K]");
  return with_type(weight, [&](auto zero) {
    using A = decltype(zero);
    const Index outputs = weight.size(0), inputs = weight.size(1), taps = weight.size(2) * weight.size(2);
    const Index rows = transposed ? outputs : inputs, vectors = Panels<A>(transposed ? inputs : outputs).vectors;
    Tensor packed = empty<A>(weight, {vectors * kLanes<A> * rows * taps});
    pack<A>(data<A>(weight), outputs, inputs, taps, transposed, data<A>(packed));
    return packed;
  });
}

Tensor convolution(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> shortcut, Index outputs,
                   Index size, Index stride, Index padding, bool relu) {
  const Window window = describe(size, stride, padding);
  STD_TORCH_CHECK(is_channels_last(x), "convolution: x must be channels-last");
  const Index height = (x.size(2) + 2 * padding - size) / stride + 1,
              width = (x.size(3) + 2 * padding - size) / stride + 1;
  STD_TORCH_CHECK(x.size(2) + 2 * padding >= size && x.size(3) + 2 * padding >= size,
                  "convolution: the image is smaller than the kernel");
  STD_TORCH_CHECK(packed.scalar_type() == x.scalar_type() &&
                      (!bias || (bias->scalar_type() == x.scalar_type() && bias->is_contiguous() && bias->dim() == 1 &&
                                 bias->size(0) == outputs)),
                  "convolution: packed weights and bias [outputs] must have the dtype of x");
  STD_TORCH_CHECK(!shortcut || (shortcut->scalar_type() == x.scalar_type() && is_channels_last(*shortcut) &&
                                has_shape(*shortcut, x.size(0), outputs, height, width)),
                  "convolution: the shortcut must be like the result, channels-last");
  return with_type(x, [&](auto zero) {
    using A = decltype(zero);
    check_weights<A>(packed, x.size(1), outputs, window);
    Tensor y = empty<A>(x, {x.size(0), outputs, height, width}, MemoryFormat::ChannelsLast);
    run_convolution<A>(window, pixels<const A>(x), data<A>(packed), pixels<A>(y),
                       {data_or_null<A>(bias), data_or_null<A>(shortcut), relu});
    return y;
  });
}

Tensor convolution_gradient(Tensor dy, Tensor packed, Index inputs, Index height, Index width, Index size, Index stride,
                            Index padding) {
  const Window window = describe(size, stride, padding);
  STD_TORCH_CHECK(is_channels_last(dy) && packed.scalar_type() == dy.scalar_type(),
                  "convolution_gradient: dy must be channels-last, with the dtype of the weights");
  STD_TORCH_CHECK(inputs >= 1 && height + 2 * padding >= size && width + 2 * padding >= size &&
                      dy.size(2) == (height + 2 * padding - size) / stride + 1 &&
                      dy.size(3) == (width + 2 * padding - size) / stride + 1,
                  "convolution_gradient: dy is not of the size that the convolution gives");
  return with_type(dy, [&](auto zero) {
    using A = decltype(zero);
    check_weights<A>(packed, dy.size(1), inputs, window);
    Tensor dx = empty<A>(dy, {dy.size(0), inputs, height, width}, MemoryFormat::ChannelsLast);
    run_convolution_gradient<A>(window, pixels<const A>(dy), data<A>(packed), pixels<A>(dx));
    return dx;
  });
}

}  // namespace robust_lr::cpu
