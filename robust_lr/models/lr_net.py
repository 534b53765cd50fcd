"""LR-Net (paper section 5, Table 2): a ResNet whose spatial layers are local relation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..ops.reference import Border, Composability, Normalization
from .conv_nets import resnet_stem
from .layers.basic import Pointwise2d
from .layers.geometric_prior import Prior
from .layers.local_relation import FullRelation2d, LocalRelation2d, Sharing
from .lr_net_stem import LRNet
from .resnet import BasicBlock, Bottleneck, Frame, ResNet, SpatialLayer, check_stem, four_stages


def lr_stem(frame: Frame, channels: int, layer: SpatialLayer) -> dict[str, nn.Module]:
    """Build the stem: a 1x1 convolution to 64 channels, then local relation.

    The relation has stride 2 and max-pooling follows it ("imagenet"), stride 2 alone ("stride2"), or neither ("small").
    """
    check_stem(frame.stem)
    modules: dict[str, nn.Module] = {
        "conv1": Pointwise2d(frame.in_channels, channels),
        "bn1": nn.BatchNorm2d(channels),
        "relu1": nn.ReLU(inplace=True),
        "relation": layer(channels, channels, 1 if frame.stem == "small" else 2),
        "bn2": nn.BatchNorm2d(channels),
        "relu2": nn.ReLU(inplace=True),
    }
    if frame.stem == "imagenet":
        modules["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return modules


def lr_net(
    depths: Sequence[int],
    block: type[BasicBlock] | type[Bottleneck],
    non_local: bool,
    frame: Frame,
    *,
    kernel_size: int | Literal["full"] = 7,
    channels_per_group: Sharing = 8,
    query_dim: int = 1,
    composability: Composability = "squared_difference",
    normalization: Normalization = "softmax",
    border: Border = "mask",
    prior: Prior = "network",
    appearance_scale: float = 1.0,
    bottleneck: int = 100,
    conv_stem: bool = False,
) -> ResNet:
    """Build an LR-Net; the layer options are those of ``LocalRelation2d`` and hold for every such layer.

    Args:
        kernel_size: odd, or "full" for the full image in every block (paper Table 3). Ours: the stem, which sees the
            most pixels, keeps its 7x7 window then.
        bottleneck: as in ``four_stages``; the default is the paper's ratio alpha, 100 of 256 channels, with which the
            FLOPs match ResNet's (section 5).
        conv_stem: the stem of ResNet in place of LR-Net's.
        depths, non_local: as in ``four_stages``.
    """
    options: dict[str, Any] = {
        "channels_per_group": channels_per_group,
        "query_dim": query_dim,
        "composability": composability,
        "normalization": normalization,
        "prior": prior,
        "appearance_scale": appearance_scale,
    }
    window = 7 if kernel_size == "full" else kernel_size

    def windowed(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return LocalRelation2d(in_channels, out_channels, window, stride, border=border, **options)

    def spatial(key_stride: int) -> SpatialLayer:
        def full(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            return FullRelation2d(in_channels, out_channels, stride, key_stride=stride * key_stride, **options)

        return full if kernel_size == "full" else windowed

    stages = four_stages(depths, block, bottleneck, frame, spatial, non_local=non_local)
    width = frame.scaled(64)
    stem = resnet_stem(frame, width) if conv_stem else lr_stem(frame, width, windowed)
    return (ResNet if conv_stem else LRNet)(frame, stem, width, block, stages)
