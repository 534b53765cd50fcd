"""Layers of local relation, in a window or over the full image (paper section 4)."""

from __future__ import annotations

from math import ceil, inf
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.full_image import full_relation, offsets
from ...ops.local_relation import local_relation
from ...ops.reference import Border, Composability, Normalization
from ...utils.checks import choose
from ...utils.errors import InputError
from .basic import Pointwise2d, check_kernel_size
from .geometric_prior import FULL_TABLE, PRIORS, Prior

#: m channels that share weights, or one group of all channels
Sharing = int | Literal["all"]


class LocalRelation2d(nn.Module):
    """The local relation layer, which takes the place of a K x K convolution (paper section 4).

    Pixels of a window are aggregated with weights softmax(Phi(query, key) + geometric prior), which
    ``channels_per_group`` channels share; a 1x1 channel transform follows. Input [N, C, H, W], output
    [N, out_channels, ceil(H/s), ceil(W/s)].

    Ours, where the paper is silent: query and key transforms have no bias and start with a standard deviation of
    ``appearance_scale`` / sqrt(C), so that the softmax starts soft; groups are contiguous and the last one may be
    short.

    Args:
        in_channels: C.
        out_channels: C' of the trailing channel transform.
        kernel_size: K, odd.
        stride: 1 or more; windows are centered like those of a padded K x K convolution.
        channels_per_group: m, the channels that share one set of weights; "all" is one set for all of them (Table 5).
        query_dim: d, values per group in query and key; d > 1 is meant for ``composability="product"`` (Table 4).
        composability: Phi: "squared_difference", "absolute_difference" or "product" (equations 3 to 5).
        normalization: "softmax" or "none" (Table 6).
        border: "mask" leaves out positions outside the image; "zero" lets zero padding take part.
        prior: the geometric prior, a "network", a learnt "table" (G*) or "none" (NG), see ``priors`` (Table 3).
        appearance_scale: of fresh queries and keys; below 1 the geometric prior decides alone at first (ours, see
            docs/lrnet-training.md).

    Raises:
        InputError: a size below 1, an even kernel_size, an unknown prior, an appearance_scale that is not positive.
    """

    shown: ClassVar[tuple[str, ...]] = (
        "kernel_size",
        "stride",
        "channels_per_group",
        "composability",
        "normalization",
        "border",
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        *,
        channels_per_group: Sharing = 8,
        query_dim: int = 1,
        composability: Composability = "squared_difference",
        normalization: Normalization = "softmax",
        border: Border = "mask",
        prior: Prior = "network",
        appearance_scale: float = 1.0,
    ):
        super().__init__()
        if channels_per_group == "all":
            channels_per_group = in_channels
        check_kernel_size(kernel_size)
        for name, value in {"stride": stride, "channels_per_group": channels_per_group, "query_dim": query_dim}.items():
            if value < 1:
                raise InputError(f"{name} = {value}: must be at least 1")
        if not 0 < appearance_scale < inf:
            raise InputError(f"appearance_scale = {appearance_scale}: must be positive and finite")
        groups = ceil(in_channels / channels_per_group)
        self.query = Pointwise2d(in_channels, groups * query_dim, stride)
        self.key = Pointwise2d(in_channels, groups * query_dim)
        self.prior: nn.Module = choose("prior", prior, PRIORS)(groups, kernel_size)
        self.transform = Pointwise2d(in_channels, out_channels)
        self.kernel_size = kernel_size
        self.stride = stride
        self.channels_per_group = channels_per_group
        self.composability = composability
        self.normalization = normalization
        self.border = border
        self.appearance_scale = appearance_scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the class's docstring says; networks call this again after their own general initialization."""
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=self.appearance_scale * layer.in_channels**-0.5)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the operator, by name."""
        return {name: getattr(self, name) for name in LocalRelation2d.shown}

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.stride > 1:
            return self.query(x), self.key(x)
        q, k = F.conv2d(x, torch.cat([self.query.weight, self.key.weight])).chunk(2, dim=1)  # one pass over the pixels
        return q, k

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.queries_and_keys(x)
        y = local_relation(x, q, k, self.prior(), **self.options)
        out: Tensor = self.transform(y)
        return out


class FullRelation2d(LocalRelation2d):
    """A local relation layer whose window is the full image (paper Table 3), with keys on a coarser grid.

    Ours, where the paper is silent: keys and the values that they weigh stand for the mean of key_stride x key_stride
    pixels; offsets are scaled to [-1, 1] by the longest one that the image allows; a learnt table has 27 x 27 entries
    and is interpolated, so that it fits every image size. There is no border.

    Args:
        key_stride: how many times coarser than the input the grid of the keys is, on each side.
        others: as in ``LocalRelation2d``.
    """

    shown = ("stride", "key_stride", "channels_per_group", "composability", "normalization")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        key_stride: int = 1,
        channels_per_group: Sharing = 8,
        query_dim: int = 1,
        composability: Composability = "squared_difference",
        normalization: Normalization = "softmax",
        prior: Prior = "network",
        appearance_scale: float = 1.0,
    ):
        super().__init__(
            in_channels,
            out_channels,
            FULL_TABLE,
            stride,
            channels_per_group=channels_per_group,
            query_dim=query_dim,
            composability=composability,
            normalization=normalization,
            prior=prior,
            appearance_scale=appearance_scale,
        )
        if key_stride < 1:
            raise InputError(f"key_stride = {key_stride}: must be at least 1")
        self.key_stride = key_stride

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, self.key_stride, ceil_mode=True) if self.key_stride > 1 else x
        (down, rows), (across, columns) = (
            offsets(size, self.stride, self.key_stride, x.device) for size in x.shape[2:]
        )
        geo: Tensor | None = self.prior.at(down, across)  # type: ignore[operator]
        y = full_relation(
            pooled,
            self.query(x),
            self.key(pooled),
            geo,
            rows,
            columns,
            channels_per_group=self.channels_per_group,
            composability=self.composability,
            normalization=self.normalization,
        )
        out: Tensor = self.transform(y)
        return out
