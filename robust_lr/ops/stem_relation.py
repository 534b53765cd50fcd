"""The LR-Net stem as one operator: a local relation whose values are never in memory.

At full resolution the stem's 64 channels are 20 times as large as the image that they are computed from. The kernels
compute them from the image wherever they need them, forward and backward.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import local_relation as ops
from . import reference
from .reference import Border, Composability, Normalization, RelationOptions

#: the most channels of an image that the kernels take; kMaxInputs in csrc/problem.h
MAX_INPUTS = 4

#: dtypes of results that there are kernels for, by device
PRECISIONS = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}


def covers(image: Tensor) -> bool:
    """Return True if there is a kernel for images of this kind, here and now."""
    device = image.device.type
    return (
        not torch.compiler.is_compiling()
        and device in PRECISIONS  # autocast cannot be queried for others, "meta" among them
        and _precision(image) in PRECISIONS[device]
        and 1 <= image.shape[1] <= MAX_INPUTS
        and image.numel() > image.shape[1]  # more than one pixel, which training takes statistics of
        and not torch._C._are_functorch_transforms_active()
        and ops.has_kernels(device)
    )


def _precision(image: Tensor) -> torch.dtype:
    """Return the dtype that a convolution of the image would return under the current autocast."""
    device = image.device.type
    lowered = torch.is_autocast_enabled(device) and image.dtype != torch.float64
    return torch.get_autocast_dtype(device) if lowered else image.dtype


def stem_relation(
    image: Tensor,
    transform: Tensor,
    query: Tensor,
    key: Tensor,
    geo: Tensor | None,
    *,
    kernel_size: int | None = None,
    stride: int = 1,
    channels_per_group: int = 8,
    composability: Composability = "squared_difference",
    normalization: Normalization = "softmax",
    border: Border = "mask",
) -> Tensor:
    """Apply `ops.local_relation` to x = relu(transform * (image, 1)), with channel transforms of x as queries and keys.

    Args:
        image: [N, I, H, W], for which `covers` is true.
        transform: [C, I + 1], the bias last.
        query, key: [G * d, C]; queries are taken at every `stride`-th row and column.
        geo: [G, K, K]; or None, with `kernel_size` given.

    Returns:
        y [N, C, ceil(H / stride), ceil(W / stride)], channels-last, in the image's dtype, or the one of autocast.
        Values are computed in float32 and rounded to that dtype; logits and sums stay float32. All of these are float64
        for float64 images.
    """
    dtype = _precision(image)
    wide = reference.accumulation_dtype(dtype)
    y: Tensor = _StemRelation.apply(
        image.to(wide).contiguous(),
        transform.to(wide).contiguous(),
        query.to(dtype).contiguous(),
        key.to(dtype).contiguous(),
        None if geo is None else geo.to(wide).contiguous(),
        RelationOptions(
            kernel_size if geo is None else geo.shape[-1],
            stride,
            channels_per_group,
            composability,
            normalization,
            border,
        ),
    )
    return y


class _StemRelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.options = arguments
        ctx.numbers = ctx.options.numbers()
        y, *kept = torch.ops.robust_lr.stem_relation.default(*tensors, *ctx.numbers)
        ctx.save_for_backward(*tensors, y, *kept)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, y, q, k, stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[: len(tensors)]
        if torch.is_grad_enabled():  # a caller wants gradients of gradients
            # In training the transform depends on the image; views cut that path, which is not this operator's.
            points: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
            inputs = [point for point, needed in zip(points, wanted, strict=True) if needed]
            found = iter(
                torch.autograd.grad(compose_stem(*points, **asdict(ctx.options)), inputs, dy, create_graph=True)
            )
        else:
            needs_image, needs_weights = wanted[0], any(wanted[1:])
            gradients = torch.ops.robust_lr.stem_relation_backward.default(
                dy, *tensors, y, q, k, stats, *ctx.numbers, needs_image, needs_weights
            )
            found = iter(g for g, needed in zip(gradients, wanted, strict=True) if needed)
        return *(next(found) if needed else None for needed in wanted), None


def compose_stem(
    image: Tensor,
    transform: Tensor,
    query: Tensor,
    key: Tensor,
    geo: Tensor | None,
    *,
    stride: int = 1,
    **options: Any,
) -> Tensor:
    """Compute ``stem_relation`` step by step: the oracle, and the path for gradients of gradients."""
    x = torch.relu(F.conv2d(image, transform[:, :-1, None, None], transform[:, -1]))
    q, k = (F.conv2d(x, w.to(x.dtype)[..., None, None], stride=s) for w, s in ((query, stride), (key, 1)))
    return ops.local_relation(x, q, k, geo, stride=stride, **options).to(query.dtype)
