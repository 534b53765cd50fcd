// The operators of convolution.h.
#include "operands.h"

namespace robust_lr::cpu {
namespace {

void check_like_result(const std::optional<Tensor>& t, const Tensor& x, Index channels, Index height, Index width) {
  STD_TORCH_CHECK(!t || (t->scalar_type() == x.scalar_type() && is_channels_last(*t) &&
                         has_shape(*t, x.size(0), channels, height, width)),
                  "convolution: shortcut and mask must be like the result, channels-last");
}

}  // namespace

Tensor pack_convolution(Tensor weight, bool transposed, bool bfloat16) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.size(2) == weight.size(3),
                  "convolution: weight must be contiguous [outputs, inputs, K, K]");
  STD_TORCH_CHECK(!bfloat16 || weight.scalar_type() == ScalarType::Float,
                  "convolution: weights to be packed as bfloat16 must be float32");
  return with_products(bfloat16 ? ScalarType::BFloat16 : weight.scalar_type(), [&](auto products) {
    using P = decltype(products);
    const Index outputs = weight.size(0), inputs = weight.size(1), taps = weight.size(2) * weight.size(2);
    const Index size = packed_size<P>(transposed ? outputs : inputs, transposed ? inputs : outputs, taps);
    Tensor packed = torch::stable::empty({size}, bfloat16 ? ScalarType::BFloat16 : weight.scalar_type(), std::nullopt,
                                         weight.device());
    pack<P>(data<typename P::Sum>(weight), outputs, inputs, taps, transposed, data<typename P::Element>(packed));
    return packed;
  });
}

Tensor convolution(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> shortcut, Index outputs,
                   Index size, Index stride, Index padding, bool relu) {
  const Window window = describe(size, stride, padding);
  STD_TORCH_CHECK(is_channels_last(x), "convolution: x must be channels-last");
  STD_TORCH_CHECK(window.fits(x.size(2), x.size(3)), "convolution: the image is smaller than the kernel");
  const Index height = window.size_after(x.size(2)), width = window.size_after(x.size(3));
  check_like_result(shortcut, x, outputs, height, width);
  return with_products(x.scalar_type(), [&](auto products) {
    using P = decltype(products);
    using T = typename P::Element;
    check_weights<P>(packed, x.scalar_type(), x.size(1), outputs, window);
    check_bias<P>(bias, outputs);
    Tensor y = result_like(x, outputs, height, width);
    run_convolution<P>(window, pixels<const T>(x), data<T>(packed), pixels<T>(y),
                       {data_or_null<typename P::Sum>(bias), data_or_null<T>(shortcut), relu});
    return y;
  });
}

Tensor convolution_gradient(Tensor dy, Tensor packed, std::optional<Tensor> shortcut, std::optional<Tensor> mask,
                            Index inputs, Index height, Index width, Index size, Index stride, Index padding) {
  const Window window = describe(size, stride, padding);
  STD_TORCH_CHECK(is_channels_last(dy), "convolution_gradient: dy must be channels-last");
  STD_TORCH_CHECK(inputs >= 1 && window.fits(height, width) && dy.size(2) == window.size_after(height) &&
                      dy.size(3) == window.size_after(width),
                  "convolution_gradient: dy is not of the size that the convolution gives");
  for (const std::optional<Tensor>& t : {shortcut, mask}) check_like_result(t, dy, inputs, height, width);
  return with_products(dy.scalar_type(), [&](auto products) {
    using P = decltype(products);
    using T = typename P::Element;
    check_weights<P>(packed, dy.scalar_type(), dy.size(1), inputs, window);
    Tensor dx = result_like(dy, inputs, height, width);
    run_convolution_gradient<P>(window, pixels<const T>(dy), data<T>(packed), pixels<T>(dx),
                                {nullptr, data_or_null<T>(shortcut), false, data_or_null<T>(mask)});
    return dx;
  });
}

bool has_bfloat16_products() { return supports_bfloat16(); }

}  // namespace robust_lr::cpu
