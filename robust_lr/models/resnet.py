"""ResNet (He et al. 2016) with the stride on the 3x3 layer ("v1.5"), under torchvision's parameter names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..layers import LocalRelation2d, Normalize

#: (in_channels, out_channels, stride) -> the spatial layer of a block: a 3x3 convolution, or a local relation layer
SpatialLayer = Callable[[int, int, int], nn.Module]

STEMS = ("imagenet", "small")


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def scaled(channels: int, width: float) -> int:
    """``channels`` times the width multiplier, at least 1."""
    return max(1, round(channels * width))


class Block(nn.Module, ABC):
    """A residual block: relu(body(x) + shortcut(x)); the shortcut is the identity wherever the shapes allow it."""

    downsample: nn.Sequential | None

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    @property
    @abstractmethod
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm just before the sum."""

    @abstractmethod
    def body(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.body(x) + shortcut)
        return out


class BasicBlock(Block):
    """Two spatial layers; ``mid`` channels between them (``mid = out`` in ResNet-18)."""

    def __init__(self, in_channels: int, mid: int, out_channels: int, stride: int, spatial: SpatialLayer):
        super().__init__(in_channels, out_channels, stride)
        self.conv1, self.bn1 = spatial(in_channels, mid, stride), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = spatial(mid, out_channels, 1), nn.BatchNorm2d(out_channels)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(Block):
    """1x1 to ``mid`` channels, a spatial layer, 1x1 back to ``out_channels``."""

    def __init__(self, in_channels: int, mid: int, out_channels: int, stride: int, spatial: SpatialLayer):
        super().__init__(in_channels, out_channels, stride)
        self.conv1, self.bn1 = conv1x1(in_channels, mid), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = spatial(mid, mid, stride), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = conv1x1(mid, out_channels), nn.BatchNorm2d(out_channels)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class ResNet(nn.Module):
    """Normalize -> stem -> four stages of blocks -> global average pooling -> linear classifier.

    Takes pixels [N, in_channels, H, W] in [0, 1], returns logits [N, num_classes]. The same skeleton serves LR-Net:
    the stem and the spatial layer of the blocks are what differs.

    Args:
        stem: modules by name, run in order between ``normalize`` and ``layer1``.
        stem_channels: what the stem returns.
        block: BasicBlock or Bottleneck.
        depths: blocks per stage.
        mids, outs: channels inside and at the end of each stage's blocks.
        spatial: the spatial layer of the blocks.
        mean, std: of the pixels, per channel.
    """

    def __init__(
        self,
        stem: dict[str, nn.Module],
        stem_channels: int,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        mids: Sequence[int],
        outs: Sequence[int],
        spatial: SpatialLayer,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem_names = tuple(stem)
        for name, module in stem.items():
            self.add_module(name, module)
        channels = stem_channels
        for stage, (depth, mid, out) in enumerate(zip(depths, mids, outs, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(channels, mid, out, stride, spatial))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialization; each block starts as its shortcut, its last batch norm being zero (Goyal et al. 2017)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, LocalRelation2d):
                module.reset_parameters()
            elif isinstance(module, Block):
                nn.init.zeros_(module.last_norm.weight)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map, [N, channels, h, w]."""
        x = self.normalize(x)
        for name in (*self.stem_names, "layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def check_stem(stem: str) -> None:
    if stem not in STEMS:
        raise InputError(f"stem = {stem!r}: choose one of {', '.join(STEMS)} ('small' is for images up to 64 pixels)")


def resnet_stem(stem: str, in_channels: int, channels: int) -> dict[str, nn.Module]:
    """ "imagenet": 7x7 stride 2 and max-pooling; "small": one 3x3 convolution at full resolution (He et al., CIFAR)."""
    check_stem(stem)
    norm = {"bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU(inplace=True)}
    if stem == "small":
        return {"conv1": conv3x3(in_channels, channels), **norm}
    conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    return {"conv1": conv, **norm, "maxpool": nn.MaxPool2d(3, stride=2, padding=1)}


def resnet(
    depths: Sequence[int],
    block: type[BasicBlock] | type[Bottleneck],
    *,
    num_classes: int,
    in_channels: int,
    width: float,
    stem: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> ResNet:
    mids = [scaled(64 * 2**stage, width) for stage in range(4)]
    outs = mids if block is BasicBlock else [scaled(256 * 2**stage, width) for stage in range(4)]
    channels = scaled(64, width)
    return ResNet(
        resnet_stem(stem, in_channels, channels), channels, block, depths, mids, outs, conv3x3, num_classes, mean, std
    )
