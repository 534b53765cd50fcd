"""The first convolution of an attacked network, which has a kernel for the gradient by the image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .fused_conv import covers

#: channels and kernel sizes that the kernel is compiled for
CHANNELS, KERNEL_SIZES = (1, 3), (3, 7)


class ImageConv2d(nn.Conv2d):
    """A convolution of an image by weights that are not trained.

    PyTorch's gradient by the image takes several times as long on a CPU, where an image has few channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not (input.requires_grad and covers(input, weight)):
            return super().forward(input)
        y: Tensor = _ImageConvolution.apply(input, weight, self.bias, self.stride[0], int(self.padding[0]))
        return y


def takes(conv: nn.Conv2d) -> bool:
    """Return True if there is a kernel for convolutions of this kind."""
    return (
        conv.in_channels in CHANNELS
        and conv.kernel_size in [(size, size) for size in KERNEL_SIZES]
        and conv.stride == (conv.stride[0],) * 2
        and conv.padding in [(padding, padding) for padding in range(conv.kernel_size[0])]
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


class _ImageConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.numbers = image.shape, (stride, padding)
        return F.conv2d(image, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a caller wants gradients of gradients
            dimage = conv2d_input(ctx.size, weight, dy, *ctx.numbers)  # type: ignore[no-untyped-call]
        else:
            dimage = torch.ops.robust_lr.image_gradient.default(
                dy.permute(0, 2, 3, 1).contiguous(), weight.contiguous(), *ctx.size[2:], *ctx.numbers
            )
        return dimage, None, None, None, None
