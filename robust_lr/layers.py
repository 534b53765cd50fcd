"""Layers: pixel normalization, the geometric prior and the local relation layer (paper section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .ops import local_relation
from .reference import Border, Composability, Normalization

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Pixels in [0, 1] -> (x - mean) / std, per channel, in channels-last layout, the fastest for what follows.

    It is the first layer of every network, so that attacks always work in pixel space and eps means what it says.
    The values are buffers and travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(map(isfinite, (*mean, *std))) or min(std) <= 0:
            raise InputError(
                f"normalization: mean {tuple(mean)} and std {tuple(std)} need equal lengths, finite values and std > 0"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise InputError(f"images of shape {tuple(x.shape)}: the model takes [N, {len(self.mean)}, H, W]")
        x = (x - self.mean) / self.std
        if x.shape[1] == 1:  # one channel fits either layout; these strides say which
            n, _, height, width = x.shape
            return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)


class GeometricPrior(nn.Module):
    """The geometric prior g: two channel transforms with a ReLU between, applied to the relative position.

    Returns [groups, K, K], one value per group and offset. Ours, where the paper is silent: offsets are scaled to
    [-1, 1] by the window radius and the hidden width is the number of groups.
    """

    offsets: Tensor

    def __init__(self, groups: int, kernel_size: int):
        super().__init__()
        line = torch.linspace(-1, 1, kernel_size) if kernel_size > 1 else torch.zeros(1)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)
        self.register_buffer("offsets", grid.view(-1, 2), persistent=False)
        self.kernel_size = kernel_size
        self.hidden = nn.Linear(2, groups)
        self.value = nn.Linear(groups, groups)

    def forward(self) -> Tensor:
        # fp32 whatever autocast says: 49 values that are added to logits, and cost nothing
        with torch.autocast(self.offsets.device.type, enabled=False):
            values: Tensor = self.value(torch.relu(self.hidden(self.offsets)))
        return values.t().reshape(-1, self.kernel_size, self.kernel_size)


class FixedPrior(nn.Module):
    """The prior at inference: the network's values, computed once (paper section 4.3)."""

    values: Tensor

    def __init__(self, values: Tensor):
        super().__init__()
        self.register_buffer("values", values.detach().clone())

    def forward(self) -> Tensor:
        return self.values


class LocalRelation2d(nn.Module):
    """The local relation layer, which takes the place of a K x K convolution (paper section 4).

    Pixels of a window are aggregated with weights softmax(Phi(query, key) + geometric prior), which
    ``channels_per_group`` channels share; a 1x1 channel transform follows. Input [N, C, H, W], output
    [N, out_channels, ceil(H/s), ceil(W/s)].

    Ours, where the paper is silent: query and key transforms have no bias and start with variance 1 / C, so that the
    softmax starts soft; groups are contiguous and the last one may be short.

    Args:
        in_channels: C.
        out_channels: C' of the trailing channel transform.
        kernel_size: K, odd.
        stride: 1 or more; windows are centered like those of a padded K x K convolution.
        channels_per_group: m, the channels that share one set of weights.
        query_dim: d, values per group in query and key; d > 1 is meant for ``composability="product"`` (Table 4).
        composability: Phi: "squared_difference", "absolute_difference" or "product" (equations 3 to 5).
        normalization: "softmax" or "none" (Table 6).
        border: "mask" leaves positions outside the image out; "zero" lets zero padding take part.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        *,
        channels_per_group: int = 8,
        query_dim: int = 1,
        composability: Composability = "squared_difference",
        normalization: Normalization = "softmax",
        border: Border = "mask",
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size = {kernel_size}: an odd number is needed, so that windows have a center")
        for name, value in {"stride": stride, "channels_per_group": channels_per_group, "query_dim": query_dim}.items():
            if value < 1:
                raise InputError(f"{name} = {value}: must be at least 1")
        groups = ceil(in_channels / channels_per_group)
        self.query = nn.Conv2d(in_channels, groups * query_dim, 1, stride=stride, bias=False)
        self.key = nn.Conv2d(in_channels, groups * query_dim, 1, bias=False)
        self.prior: nn.Module = GeometricPrior(groups, kernel_size)
        self.transform = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.stride = stride
        self.channels_per_group = channels_per_group
        self.composability = composability
        self.normalization = normalization
        self.border = border
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start named in the class's docstring; networks call it again after their own general initialization."""
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)

    def extra_repr(self) -> str:
        names = ("stride", "channels_per_group", "composability", "normalization", "border")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:  # both read the same pixels: one pass over them
            q, k = F.conv2d(x, torch.cat([self.query.weight, self.key.weight])).chunk(2, dim=1)
        else:
            q, k = self.query(x), self.key(x)
        y = local_relation(
            x,
            q,
            k,
            self.prior(),
            stride=self.stride,
            channels_per_group=self.channels_per_group,
            composability=self.composability,
            normalization=self.normalization,
            border=self.border,
        )
        out: Tensor = self.transform(y)
        return out
