"""Convolution, bias, sum with a shortcut and ReLU in one pass, for networks that are attacked: their weights stay."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ...ops import build as extension
from ...ops import local_relation as ops


class FusedConv2d(nn.Conv2d):
    """A convolution, a sum with a shortcut where there is one, and a ReLU where ``relu``; [N, C, H, W], channels-last.

    On a CPU it has a kernel for weights that are not trained. These are packed once; the sums of a pixel run in one
    order, so that no image's result depends on the batch.
    """

    relu = False

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weight, bias = self.weight, self.bias
        if covers(input, weight) and self.plain:
            y: Tensor = _Fused.apply(input, shortcut, weight, *self.packed(weight), bias, *self.sizes, self.relu)
            return y
        y = super().forward(input)
        if shortcut is not None:
            y = y + shortcut
        return F.relu(y, inplace=True) if self.relu else y

    @functools.cached_property
    def plain(self) -> bool:
        """Whether there is a kernel for convolutions of this kind."""
        window = self.kernel_size, self.stride, self.padding
        rest = self.dilation, self.groups, self.padding_mode
        return all(pair == (pair[0],) * 2 for pair in window) and rest == ((1, 1), 1, "zeros")

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.kernel_size[0], self.stride[0], int(self.padding[0])

    def packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weights as the kernels of the convolution and of its gradient read them; made anew where they changed."""
        state = weight.data_ptr(), weight._version, weight.dtype
        if self.__dict__.get("_packed_state") != state:
            rows = weight.detach().contiguous()
            pack = torch.ops.robust_lr.pack_convolution.default
            self._packed, self._packed_state = (pack(rows, False), pack(rows, True)), state
        return self._packed


def covers(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for such images and weights, here and now."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and ops.has_kernels("cpu")
        and has_wide_vectors()
    )


@functools.cache
def has_wide_vectors() -> bool:
    """Whether the kernels know this processor's vectors; where they do not, PyTorch's libraries are faster."""
    compiler = extension.find_compiler()
    return compiler is not None and compiler.vectors != extension.PORTABLE


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, packed: Tensor, transposed: Tensor,
        bias: Tensor | None, outputs: int, size: int, stride: int, padding: int, relu: bool,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        if shortcut is not None:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.robust_lr.convolution.default(
            x, packed, bias, shortcut, outputs, size, stride, padding, relu
        )
        ctx.save_for_backward(weight, transposed, y if relu else None)
        ctx.shape, ctx.window = x.shape, (size, stride, padding)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, transposed, y = ctx.saved_tensors
        if y is not None:
            dy = torch.ops.aten.threshold_backward.default(dy, y, 0)
        dx = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():  # someone wants gradients of gradients
                dx = conv2d_input(ctx.shape, weight, dy, *ctx.window[1:])  # type: ignore[no-untyped-call]
            else:
                dx = torch.ops.robust_lr.convolution_gradient.default(
                    dy.contiguous(memory_format=torch.channels_last), transposed, *ctx.shape[1:], *ctx.window
                )
        return dx, dy if ctx.needs_input_grad[1] else None, *(None,) * 9
