"""Convolution, bias, sum with a shortcut and ReLU in one pass, for networks that are attacked: their weights stay."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ...ops import library
from ...ops import local_relation as ops
from ...ops.compiler import PORTABLE


class FusedConv2d(nn.Conv2d):
    """A convolution, a sum with a shortcut where there is one, and a ReLU where ``relu``; [N, C, H, W], channels-last.

    On a CPU it has a kernel for weights that are not trained. These are packed once; the sums of a pixel run in one
    order, so that no image's result depends on the batch.

    Attributes:
        relu: whether a ReLU follows.
        rectified: whether the input is what a ReLU returned, and goes nowhere else (but see ``forked``): then the
            gradient of that ReLU is taken here, in the same pass.
        premasked: whether the gradient of the result comes from a layer that is ``rectified``.
        lowered: whether the kernel takes and returns bfloat16, summing in float32, and keeps the weights in it.
            Inputs of another type are converted, and gradients back.
    """

    relu = False
    rectified = False
    premasked = False
    lowered = False

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        input, shortcut = self.converted(input), None if shortcut is None else self.converted(shortcut)
        if self.has_kernel(input):
            y: Tensor = self.fused(input, shortcut, False)[0]
            return y
        y = self.plainly(input)
        if shortcut is not None:
            y = y + shortcut
        return F.relu(y, inplace=True) if self.relu else y

    def forked(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result for ``input``, and ``input`` for the other path of a block.

        The gradients of both paths are summed in the pass that makes the first.
        """
        input = self.converted(input)
        if self.has_kernel(input):
            return self.fused(input, None, True)
        y = self.plainly(input)
        return F.relu(y, inplace=True) if self.relu else y, input

    def fused(self, input: Tensor, shortcut: Tensor | None, fork: bool) -> tuple[Tensor, Tensor]:
        masks = self.relu and not self.premasked, self.rectified
        y, x = _Fused.apply(
            input, shortcut, self.weight, *self.packed(self.weight), self.bias, *self.sizes, self.relu, *masks, fork
        )
        return y, x

    def parameters_of_kernel(self) -> list[Tensor]:
        """Return the tensors that operators of a whole block take for this convolution, see csrc/schema.h."""
        own = self._parameters  # attributes of a module take long to find
        weight, bias = own["weight"], own["bias"]
        assert weight is not None
        return [*self.packed(weight), weight.new_empty(0) if bias is None else bias]

    def numbers_of_kernel(self) -> list[int]:
        """Return the numbers that belong to them."""
        return [*self.sizes, int(self.relu), int(self.rectified)]

    def converted(self, input: Tensor) -> Tensor:
        return input.bfloat16() if self.lowered else input

    def plainly(self, input: Tensor) -> Tensor:
        """Apply the convolution alone, by PyTorch."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype) if self.lowered else super().forward(input)

    def has_kernel(self, input: Tensor) -> bool:
        return covers(input, self.weight) and self.plain

    @functools.cached_property
    def plain(self) -> bool:
        """True if there is a kernel for convolutions of this kind."""
        window = self.kernel_size, self.stride, self.padding
        rest = self.dilation, self.groups, self.padding_mode
        return all(pair == (pair[0],) * 2 for pair in window) and rest == ((1, 1), 1, "zeros")

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.kernel_size[0], self.stride[0], int(self.padding[0])

    def packed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights packed for the kernels of the convolution and of its gradient, anew if they changed."""
        state = *version_of(weight), self.lowered
        if self.__dict__.get("_packed_state") != state:
            rows, pack = weight.detach().contiguous(), torch.ops.robust_lr.pack_convolution.default
            forward, transposed = (pack(rows, transposed, self.lowered) for transposed in (False, True))
            self._packed, self._packed_state = (forward, transposed), state
        return self._packed


def version_of(weight: Tensor) -> tuple[int, int, torch.dtype]:
    """Return values that are different once the weight has been changed, replaced or converted."""
    return weight.data_ptr(), weight._version, weight.dtype


def covers(x: Tensor, weight: Tensor) -> bool:
    """Return True if there is a kernel for such images and weights, here and now."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and x.device.type == "cpu"
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and ops.has_kernels("cpu")
        and has_wide_vectors()
        and (x.dtype != torch.bfloat16 or has_bfloat16())
    )


@functools.cache
def has_bfloat16() -> bool:
    """Return True if this processor has products of bfloat16, and the kernels use them."""
    return ops.has_kernels("cpu") and bool(torch.ops.robust_lr.has_bfloat16_products.default())


@functools.cache
def has_wide_vectors() -> bool:
    """Return True if the kernels know this processor's vectors; where they do not, PyTorch's libraries are faster."""
    return library.vectors() not in (None, PORTABLE)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, packed: Tensor, transposed: Tensor,
        bias: Tensor | None, outputs: int, size: int, stride: int, padding: int, relu: bool, mask_result: bool,
        mask_input: bool, fork: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the convolution, and with ``fork`` its input again, which else carries no gradient."""
        given, x = x, x.contiguous(memory_format=torch.channels_last)
        if shortcut is not None:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.robust_lr.convolution.default(
            x, packed, bias, shortcut, outputs, size, stride, padding, relu
        )
        ctx.save_for_backward(weight, transposed, y if mask_result else None, x if mask_input else None)
        ctx.shape, ctx.window = x.shape, (size, stride, padding)
        ctx.set_materialize_grads(False)
        if not fork:
            given = x.new_empty(0)
            ctx.mark_non_differentiable(given)
        return y, given

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dgiven: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, transposed, y, x = ctx.saved_tensors
        rest = (None,) * 12
        if dy is None:
            return dgiven if dgiven is None or x is None else dgiven * (x > 0), None, *rest
        if y is not None:
            dy = torch.ops.aten.threshold_backward.default(dy, y, 0)
        dx = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():  # a caller wants gradients of gradients
                dx = conv2d_input(ctx.shape, weight.to(dy.dtype), dy, *ctx.window[1:])  # type: ignore[no-untyped-call]
                dx = dx if dgiven is None else dx + dgiven
                dx = dx if x is None else dx * (x > 0)
            else:
                dy, dgiven = (
                    None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (dy, dgiven)
                )
                dx = torch.ops.robust_lr.convolution_gradient.default(
                    dy, transposed, dgiven, x, *ctx.shape[1:], *ctx.window
                )
        return dx, dy if ctx.needs_input_grad[1] else None, *rest
