"""LR-Net (paper section 5, Table 2): a ResNet whose spatial layers are local relation layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..layers import LocalRelation2d
from ..reference import Border, Composability, Normalization
from .resnet import Bottleneck, ResNet, check_stem, conv1x1, scaled

#: bottleneck ratio alpha: 100 of 256 channels, so that the FLOPs match ResNet's (paper section 5)
MIDS = (100, 200, 400, 800)
OUTS = (256, 512, 1024, 2048)


def lr_stem(stem: str, in_channels: int, channels: int, layer: partial[LocalRelation2d]) -> dict[str, nn.Module]:
    """1x1 to 64 channels, then local relation: with stride 2 and max-pooling ("imagenet"), or neither ("small")."""
    check_stem(stem)
    modules: dict[str, nn.Module] = {
        "conv1": conv1x1(in_channels, channels),
        "bn1": nn.BatchNorm2d(channels),
        "relu1": nn.ReLU(inplace=True),
        "relation": layer(channels, channels, stride=1 if stem == "small" else 2),
        "bn2": nn.BatchNorm2d(channels),
        "relu2": nn.ReLU(inplace=True),
    }
    if stem == "imagenet":
        modules["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return modules


def lr_net(
    depths: Sequence[int],
    *,
    num_classes: int,
    in_channels: int,
    width: float,
    stem: str,
    mean: Sequence[float],
    std: Sequence[float],
    kernel_size: int = 7,
    channels_per_group: int = 8,
    composability: Composability = "squared_difference",
    normalization: Normalization = "softmax",
    border: Border = "mask",
) -> ResNet:
    """Bottleneck LR-Net; the layer options are those of ``LocalRelation2d`` and hold for every such layer."""
    layer = partial(
        LocalRelation2d,
        kernel_size=kernel_size,
        channels_per_group=channels_per_group,
        composability=composability,
        normalization=normalization,
        border=border,
    )

    def spatial(in_channels: int, out_channels: int, stride: int) -> LocalRelation2d:
        return layer(in_channels, out_channels, stride=stride)

    channels = scaled(64, width)
    mids = [scaled(mid, width) for mid in MIDS]
    outs = [scaled(out, width) for out in OUTS]
    modules = lr_stem(stem, in_channels, channels, layer)
    return ResNet(modules, channels, Bottleneck, depths, mids, outs, spatial, num_classes, mean, std)
