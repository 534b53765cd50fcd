"""Layers and constants that all networks share: normalization and pointwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.checks import check_whole
from ...utils.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Normalize pixels in [0, 1] to (x - mean) / std per channel, in the channels-last layout of the next layers.

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
        if x.shape[1] == 1:  # one channel fits both layouts, so set the strides of channels-last
            n, _, height, width = x.shape
            return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)


class Pointwise2d(nn.Conv2d):
    """A 1x1 convolution without bias, which on a CPU first selects every ``stride``-th pixel.

    This computes the same function as a strided convolution, whose weight gradient writes past its workspace on x86
    CPUs where a channels-last image has fewer than 16 channels (AVX-512) or 8 (AVX2): a crash or a hang in oneDNN, seen
    with PyTorch 2.11, 2.12, 2.14 and 2.15 (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cpu:  # slicing would only cost a copy
            return super().forward(input)
        down, across = self.stride
        return F.conv2d(input[..., ::down, ::across], self.weight, self.bias)


def check_kernel_size(kernel_size: int) -> None:
    check_whole(1, kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise InputError(f"kernel_size = {kernel_size}: an odd number is needed, so that windows have a center")


Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, pixels in [0, 1]


#: input statistics of other people's networks; CIFAR-10's are those of its 50,000 training images
PRESETS: dict[str, Statistics | None] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": None,
}
