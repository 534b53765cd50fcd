"""The local relation operator in plain PyTorch: the oracle for the kernels, and the path for double backward.

The same call as `robust_lr.ops.local_relation`, on any device and in any floating dtype, exact in float64 and
differentiable any number of times. It holds the weights [N, G, K*K, Ho, Wo] in memory, which the kernels never do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError

Composability = Literal["squared_difference", "absolute_difference", "product"]
Normalization = Literal["softmax", "none"]
Border = Literal["mask", "zero"]


@dataclass(frozen=True)
class RelationOptions:
    """The options of local relation; see `robust_lr.ops.local_relation` for what they mean."""

    kernel_size: int | None = None
    stride: int = 1
    channels_per_group: int = 8
    composability: Composability = "squared_difference"
    normalization: Normalization = "softmax"
    border: Border = "mask"

    def numbers(self) -> tuple[int, int, int, int, bool, bool]:
        """Return the options as the operators in csrc/schema.h take them; the kernel size must be known."""
        assert self.kernel_size is not None
        phi = get_args(Composability).index(self.composability)
        softmax, mask = self.normalization == "softmax", self.border == "mask"
        return self.kernel_size, self.stride, self.channels_per_group, phi, softmax, mask

    @classmethod
    def from_numbers(cls, numbers: Sequence[Any]) -> RelationOptions:
        """Return the options from the numbers that `numbers` returned."""
        kernel_size, stride, channels_per_group, phi, softmax, mask = numbers
        return cls(
            kernel_size,
            stride,
            channels_per_group,
            get_args(Composability)[phi],
            "softmax" if softmax else "none",
            "mask" if mask else "zero",
        )


class Shape(NamedTuple):
    """Sizes of a checked call: G groups of d query and key components, K*K windows, output Ho x Wo."""

    groups: int
    components: int
    kernel_size: int
    height: int
    width: int


def local_relation(x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, **options: Any) -> Tensor:
    """Aggregate each window of `x` with weights made from `q` and `k` (paper section 4).

    See `robust_lr.ops.local_relation` for the arguments, the result and the errors.
    """
    return aggregate(x, q, k, geo, RelationOptions(**options))


def aggregate(x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, options: RelationOptions) -> Tensor:
    """Aggregate as ``local_relation`` does, with the options in a record."""
    groups, components, size, height, width = check(x, q, k, geo, options)
    stride, channels_per_group = options.stride, options.channels_per_group
    composability, normalization = options.composability, options.normalization
    dtype = common_dtype(x, q, k)
    wide = accumulation_dtype(dtype)
    n, channels = x.shape[:2]
    radius = size // 2

    # One view of the padded image per tap, each on the output grid.
    taps = [(dy, dx) for dy in range(size) for dx in range(size)]

    def at(padded: Tensor, tap: tuple[int, int]) -> Tensor:
        dy, dx = tap
        rows = slice(dy, dy + stride * (height - 1) + 1, stride)
        columns = slice(dx, dx + stride * (width - 1) + 1, stride)
        return padded[..., rows, columns]

    query = q.to(wide).reshape(n, groups, components, height, width)
    key = F.pad(k.to(wide), (radius,) * 4)
    key = key.reshape(n, groups, components, *key.shape[2:])
    logits = torch.stack([similarity(query, at(key, tap), composability).sum(2) for tap in taps], dim=2)
    if geo is not None:
        logits = logits + geo.to(wide).reshape(groups, size * size, 1, 1)
    if options.border == "mask":
        inside = F.pad(torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device), (radius,) * 4)
        outside = ~torch.stack([at(inside, tap) for tap in taps])
        logits = logits.masked_fill(outside, float("-inf") if normalization == "softmax" else 0.0)
    weights = logits.softmax(2) if normalization == "softmax" else logits

    # A ragged last group is filled up with zero channels, which are cut off again at the end.
    filled = groups * channels_per_group
    value = F.pad(x.to(wide), (radius,) * 4 + (0, filled - channels))
    value = value.reshape(n, groups, channels_per_group, *value.shape[2:])
    y = torch.zeros(n, groups, channels_per_group, height, width, dtype=wide, device=x.device)
    for index, tap in enumerate(taps):
        y = y + weights[:, :, index, None] * at(value, tap)
    return y.flatten(1, 2)[:, :channels].to(dtype)


def similarity(query: Tensor, key: Tensor, composability: Composability) -> Tensor:
    """Compute Phi of the paper's equations (3), (4) and (5), elementwise."""
    if composability == "squared_difference":
        return -(query - key).square()
    if composability == "absolute_difference":
        return -(query - key).abs()
    return query * key


def common_dtype(x: Tensor, q: Tensor, k: Tensor) -> torch.dtype:
    """Return the dtype of the result: the widest of the three inputs, as PyTorch's own operators promote."""
    return torch.promote_types(torch.promote_types(x.dtype, q.dtype), k.dtype)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of logits and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, options: RelationOptions) -> Shape:
    """Check the arguments of a call and return its sizes; raise `InputError` for the first that is wrong."""
    for name, image in (("x", x), ("q", q), ("k", k)):
        if image.dim() != 4:
            raise InputError(f"{name} must have 4 dimensions [N, channels, height, width], got {list(image.shape)}")
    for name, tensor in (("x", x), ("q", q), ("k", k), ("geo", geo)):
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise InputError(f"{name} is on {tensor.device}, but x is on {x.device}; put them on one device")
    stride, channels_per_group = options.stride, options.channels_per_group
    for name, value in (("stride", stride), ("channels_per_group", channels_per_group)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    for name, option, allowed in (
        ("composability", options.composability, get_args(Composability)),
        ("normalization", options.normalization, get_args(Normalization)),
        ("border", options.border, get_args(Border)),
    ):
        if option not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, got {option!r}")

    n, channels, height, width = x.shape
    if min(channels, height, width) < 1:
        raise InputError(f"x must have at least one channel, row and column, got {list(x.shape)}")
    groups = -(-channels // channels_per_group)
    if q.shape[1] < groups or q.shape[1] % groups:
        raise InputError(
            f"q must have a multiple of {groups} channels (one or more for each group of {channels_per_group} of x's "
            f"{channels}), got {q.shape[1]}"
        )
    out_height, out_width = -(-height // stride), -(-width // stride)
    for name, given, wanted in (
        ("q", q, [n, q.shape[1], out_height, out_width]),
        ("k", k, [n, q.shape[1], height, width]),
    ):
        if list(given.shape) != wanted:
            raise InputError(f"{name} must have the shape {wanted} (stride {stride}), got {list(given.shape)}")
    size = _check_window(geo, options.kernel_size, groups)
    return Shape(groups, q.shape[1] // groups, size, out_height, out_width)


def _check_window(geo: Tensor | None, kernel_size: int | None, groups: int) -> int:
    """Return the window size K of a call, from `geo` or from `kernel_size`."""
    if geo is None:
        if kernel_size is None:
            raise InputError("kernel_size must be given where geo is None")
        size = kernel_size
    else:
        size = geo.shape[-1] if geo.dim() else 0
        if list(geo.shape) != [groups, size, size]:
            raise InputError(f"geo must have the shape [{groups}, K, K], got {list(geo.shape)}")
        if kernel_size not in (None, size):
            raise InputError(f"kernel_size is {kernel_size}, but geo has windows of {size}; leave kernel_size out")
    if size < 1 or size % 2 == 0:
        raise InputError(f"the window size must be odd and at least 1, got {size}")
    return size
