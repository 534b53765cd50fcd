"""Skeleton of all networks: ResNet (He et al. 2016) with the stride on the 3x3 layer ("v1.5"), as in torchvision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..utils.errors import InputError
from .layers.basic import Normalize, Pointwise2d
from .layers.local_relation import LocalRelation2d
from .layers.non_local import NonLocal2d, NonLocalBlock

#: (in_channels, out_channels, stride) -> the spatial layer of a block: a 3x3 convolution, or a local relation layer
SpatialLayer = Callable[[int, int, int], nn.Module]

STEMS = ("imagenet", "stride2", "small")
STAGES = ("layer1", "layer2", "layer3", "layer4")

#: how many times coarser than a stage's map the grid of keys is for layers that see the full image: for res2 to res4
#: from the paper (Table 3); for res5, which is small, ours
KEY_STRIDES = (4, 2, 2, 1)


class Block(nn.Module, ABC):
    """A residual block: relu(body(x) + shortcut(x)); the shortcut is the identity wherever the shapes allow it."""

    downsample: nn.Sequential | None

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Pointwise2d(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
            )

    @property
    @abstractmethod
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm before the residual sum."""

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
        self.conv1, self.bn1 = Pointwise2d(in_channels, mid), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = spatial(mid, mid, stride), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = Pointwise2d(mid, out_channels), nn.BatchNorm2d(out_channels)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


@dataclass(frozen=True)
class Frame:
    """Arguments of ``build_model`` that apply to the network as a whole rather than to its layers."""

    num_classes: int
    in_channels: int
    width: float
    stem: str
    mean: Sequence[float]
    std: Sequence[float]

    def scaled(self, channels: int) -> int:
        """Multiply ``channels`` by the width multiplier; the result is at least 1."""
        return max(1, round(channels * self.width))


@dataclass(frozen=True)
class Stage:
    """A stage: blocks at one resolution.

    Attributes:
        depth: number of blocks.
        mid, out: channels inside and at the end of them.
        spatial: their spatial layer.
        after: makes the module that follows each block for a number of channels: a non-local block, or None.
    """

    depth: int
    mid: int
    out: int
    spatial: SpatialLayer
    after: Callable[[int], nn.Module] | None = None


class ResNet(nn.Module):
    """Normalize -> stem -> four stages of blocks -> global average pooling -> linear classifier.

    Takes pixels [N, in_channels, H, W] in [0, 1], returns logits [N, num_classes]. The same skeleton serves LR-Net:
    the stem and the spatial layer of the blocks are what differs.

    Args:
        frame: classes and pixel statistics.
        stem: modules by name, run in order between ``normalize`` and ``layer1``.
        stem_channels: number of channels that the stem returns.
        block: BasicBlock or Bottleneck.
        stages: four of them; all but the first halve the resolution.
    """

    def __init__(
        self,
        frame: Frame,
        stem: dict[str, nn.Module],
        stem_channels: int,
        block: type[BasicBlock] | type[Bottleneck],
        stages: Sequence[Stage],
    ):
        super().__init__()
        self.normalize = Normalize(frame.mean, frame.std)
        self.stem_names = tuple(stem)
        for name, module in stem.items():
            self.add_module(name, module)
        channels = stem_channels
        for number, stage in enumerate(stages):
            layers: list[nn.Module] = []
            for index in range(stage.depth):
                stride = 2 if number > 0 and index == 0 else 1
                layers.append(block(channels, stage.mid, stage.out, stride, stage.spatial))
                channels = stage.out
                if stage.after is not None:
                    layers.append(stage.after(channels))
            self.add_module(f"layer{number + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, frame.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Apply He initialization; zero last batch norms make each block start as its shortcut (Goyal et al. 2017)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, LocalRelation2d | NonLocal2d):
                module.reset_parameters()
            elif isinstance(module, Block | NonLocalBlock):
                nn.init.zeros_(module.last_norm.weight)

    def features(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, channels, h, w]."""
        x = self.stem(self.normalize(x))
        for name in STAGES:
            x = self.get_submodule(name)(x)
        return x

    def stem(self, x: Tensor) -> Tensor:
        """Apply the layers before the first stage to normalized pixels."""
        for name in self.stem_names:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def check_stem(stem: str) -> None:
    if stem not in STEMS:
        raise InputError(
            f"stem = {stem!r}: choose one of {', '.join(STEMS)} ('stride2' has no pooling, for 28 to 96 pixels; "
            "'small' has neither, for images up to 64 pixels)"
        )


def four_stages(
    depths: Sequence[int],
    block: type[BasicBlock] | type[Bottleneck],
    bottleneck: int,
    frame: Frame,
    spatial: Callable[[int], SpatialLayer],
    *,
    non_local: bool = False,
) -> list[Stage]:
    """Describe the four stages of a network of the paper.

    Args:
        depths: blocks per stage.
        bottleneck: channels inside the first stage's blocks before ``frame.width``; they double at each stage.
        spatial: makes a stage's spatial layer for its key stride, which layers that see the full image use.
        non_local: put a non-local block after each residual block (paper Table 7).
    """
    if bottleneck < 1:
        raise InputError(f"bottleneck = {bottleneck}: must be at least 1")
    out = 64 if block is BasicBlock else 256
    return [
        Stage(
            depth,
            frame.scaled(bottleneck * 2**stage),
            frame.scaled(out * 2**stage),
            spatial(key_stride),
            after=partial(NonLocalBlock, key_stride=key_stride) if non_local else None,
        )
        for stage, (depth, key_stride) in enumerate(zip(depths, KEY_STRIDES, strict=True))
    ]
