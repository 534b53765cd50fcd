"""The paper's networks without local relation: ResNet, ResNet-DW (depthwise) and NL (non-local layers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from .layers.basic import check_kernel_size
from .layers.non_local import NonLocal2d
from .resnet import BasicBlock, Bottleneck, Frame, ResNet, SpatialLayer, check_stem, four_stages


def convolution(kernel_size: int) -> SpatialLayer:
    def layer(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)

    return layer


def depthwise(kernel_size: int) -> SpatialLayer:
    """Return the spatial layer of ResNet-DW, which convolves each channel by itself (paper Table 3)."""

    def layer(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
        padding = kernel_size // 2
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=in_channels, bias=False)

    return layer


def resnet_stem(frame: Frame, channels: int) -> dict[str, nn.Module]:
    """Build the stem: a 7x7 convolution of stride 2, with max-pooling after it for "imagenet", without for "stride2".

    "small" is one 3x3 convolution at full resolution (He et al. 2016, CIFAR-10).
    """
    check_stem(frame.stem)
    norm = {"bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU(inplace=True)}
    if frame.stem == "small":
        return {"conv1": convolution(3)(frame.in_channels, channels, 1), **norm}
    modules: dict[str, nn.Module] = {"conv1": convolution(7)(frame.in_channels, channels, 2), **norm}
    if frame.stem == "imagenet":
        modules["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return modules


def resnet(
    depths: Sequence[int],
    block: type[BasicBlock] | type[Bottleneck],
    spatial: Callable[[int], SpatialLayer],
    non_local: bool,
    frame: Frame,
    *,
    kernel_size: int = 3,
    bottleneck: int = 64,
) -> ResNet:
    """Build a ResNet.

    Args:
        spatial: makes the spatial layer for a kernel size: ``convolution`` or ``depthwise``.
        kernel_size: window of the blocks' spatial layers, odd (paper Table 3).
        others: as in ``four_stages``.
    """
    check_kernel_size(kernel_size)
    stages = four_stages(depths, block, bottleneck, frame, lambda key_stride: spatial(kernel_size), non_local=non_local)
    width = frame.scaled(64)
    return ResNet(frame, resnet_stem(frame, width), width, block, stages)


def non_local_net(depths: Sequence[int], frame: Frame, *, bottleneck: int) -> ResNet:
    """Build NL: a ResNet of bottlenecks with a non-local layer for each 3x3 convolution (paper Tables 7 and 8)."""

    def spatial(key_stride: int) -> SpatialLayer:
        def layer(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            return NonLocal2d(in_channels, out_channels, stride, key_stride=stride * key_stride)

        return layer

    stages = four_stages(depths, Bottleneck, bottleneck, frame, spatial)
    width = frame.scaled(64)
    return ResNet(frame, resnet_stem(frame, width), width, Bottleneck, stages)
