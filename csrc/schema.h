// The operators' schemas.
#pragma once

namespace robust_lr {

// composability counts from 0 in the order of robust_lr/ops/reference.py; `mask` is border == "mask". `stats` is what
// the backend's backward needs besides y: its layout is the backend's own.
constexpr const char* kForwardSchema =
    "local_relation(Tensor x, Tensor q, Tensor k, Tensor? geo, int kernel_size, int stride, int channels_per_group, "
    "int composability, bool softmax, bool mask) -> (Tensor y, Tensor stats)";
constexpr const char* kBackwardSchema =
    "local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k, Tensor? geo, Tensor y, Tensor stats, "
    "int kernel_size, int stride, int channels_per_group, int composability, bool softmax, bool mask, bool needs_geo) "
    "-> (Tensor dx, Tensor dq, Tensor dk, Tensor dgeo)";

// The gradients of values and of queries and keys at stride 1 that are the halves of one tensor's channels; on the CPU.
constexpr const char* kJoinedBackwardSchema =
    "joined_relation_backward(Tensor dy, Tensor x, Tensor qk, Tensor? geo, Tensor y, Tensor stats, int kernel_size, "
    "int stride, int channels_per_group, int composability, bool softmax, bool mask) -> (Tensor dx, Tensor dqk)";

// The LR-Net stem in one: x = relu(transform * (image, 1)) of `transform` [C, inputs + 1], q and k channel transforms
// of x with the weights `query` and `key` [G * d, C], y their local relation.
constexpr const char* kStemForwardSchema =
    "stem_relation(Tensor image, Tensor transform, Tensor query, Tensor key, Tensor? geo, int kernel_size, int stride, "
    "int channels_per_group, int composability, bool softmax, bool mask) -> (Tensor y, Tensor q, Tensor k, Tensor "
    "stats)";
constexpr const char* kStemBackwardSchema =
    "stem_relation_backward(Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, Tensor? geo, Tensor "
    "y, "
    "Tensor q, Tensor k, Tensor stats, int kernel_size, int stride, int channels_per_group, int composability, "
    "bool softmax, bool mask, bool needs_image, bool needs_weights) "
    "-> (Tensor dimage, Tensor dtransform, Tensor dquery, Tensor dkey, Tensor dgeo)";

// The gradient of a convolution of an image [N, inputs, height, width] with `weight` [C, inputs, K, K]: dy is [N, H, W,
// C].
constexpr const char* kImageGradientSchema =
    "image_gradient(Tensor dy, Tensor weight, int height, int width, int stride, int padding) -> Tensor";

// relu(convolution of x + bias + shortcut) of channels-last tensors, in float32, float64 or bfloat16, and the gradient
// by x: that of the convolution + shortcut, or 0 where `mask` is not above zero. The weights [outputs, inputs, K, K]
// are packed by the first, transposed for the gradient; with `bfloat16`, from float32 for tensors of that type.
constexpr const char* kPackSchema = "pack_convolution(Tensor weight, bool transposed, bool bfloat16=False) -> Tensor";
constexpr const char* kConvolutionSchema =
    "convolution(Tensor x, Tensor packed, Tensor? bias, Tensor? shortcut, int outputs, int kernel_size, int stride, "
    "int padding, bool relu) -> Tensor";
constexpr const char* kConvolutionGradientSchema =
    "convolution_gradient(Tensor dy, Tensor packed, Tensor? shortcut, Tensor? mask, int inputs, int height, int width, "
    "int kernel_size, int stride, int padding) -> Tensor";

// A residual block of such convolutions and of local relations, and the gradient by x. `kept` is what the gradient
// needs besides x and the result. `numbers` and `parameters` describe the block in this order:
//   - 1 if the gradient of the last ReLU is taken here, else 0; 1 if the shortcut has a convolution, which follows;
//   - each layer: 0 and a convolution; or 1 and a relation: 1 if queries and keys are the halves of one convolution's
//     result, the relation's numbers as above, its geo, and one convolution or two, of the queries and of the keys.
// A convolution has the numbers outputs, kernel_size, stride, padding, relu and whether x is the result of a ReLU whose
// gradient is taken here, and the parameters packed, packed transposed and bias. A tensor without elements is none.
constexpr const char* kBlockSchema =
    "folded_block(Tensor x, Tensor[] parameters, int[] numbers) -> (Tensor out, Tensor kept)";
constexpr const char* kBlockGradientSchema =
    "folded_block_gradient(Tensor dy, Tensor x, Tensor out, Tensor kept, Tensor[] parameters, int[] numbers) -> Tensor";

// Returns true if the convolutions above have kernels for bfloat16 here.
constexpr const char* kBfloat16Schema = "has_bfloat16_products() -> bool";

}  // namespace robust_lr
