"""Honest networks of many kinds: nothing hides their gradients, whatever their number is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_lr as rlr

from .networks import Cosine, cnn, regular, robust, trained


class InDtype(nn.Module):
    """Computes in another floating dtype."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = copy.deepcopy(net).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype))


class LogSoftmax(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.log_softmax(1)


class Scaled(nn.Module):
    def __init__(self, factor: float, shift: float = 0.0):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, z: Tensor) -> Tensor:
        return self.factor * z + self.shift


class Average(nn.Module):
    """The mean of two networks' logits."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) + self.second(x)) / 2


class Standardized(nn.Module):
    """Centers and scales each image by its own statistics, then the network."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean((1, 2, 3), keepdim=True)
        return self.net(centered / (centered.std((1, 2, 3), keepdim=True) + 0.05) * 0.35 + 0.29)


class Stretched(nn.Module):
    """Stretches the contrast of each image to the full range, then the network."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return self.net((x - low) / (high - low + 1e-3))


class Maxima(nn.Module):
    """Takes the brightest pixel of each 2 x 2 square for all four, then the network."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3))


class EightBits(nn.Module):
    """Rounds images to 8 bits, with the straight-through gradient of training for quantized inference."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.fake_quantize_per_tensor_affine(x, 1 / 255, 0, 0, 255))


def untrained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return cnn()


def cosines() -> nn.Module:
    net = copy.deepcopy(trained("cosine"))
    assert isinstance(net, Cosine)
    return net


HONEST: dict[str, Callable[[], nn.Module]] = {
    "regular": regular,
    "regular, tanh": lambda: trained("tanh"),
    "regular, GELU": lambda: trained("gelu"),
    "regular, ELU": lambda: trained("elu"),
    "regular, sigmoid": lambda: trained("sigmoid"),
    "regular, softplus": lambda: trained("softplus"),
    "regular, batch norm": lambda: copy.deepcopy(trained("batch norm")),
    "regular, group norm": lambda: trained("group norm"),
    "regular, layer norm": lambda: trained("layer norm"),
    "max pooling": lambda: trained("max pool"),
    "average pooling": lambda: trained("average pool"),
    "MLP": lambda: trained("mlp"),
    "linear": lambda: trained("linear"),
    "dropout": lambda: trained("dropout"),
    "ViT": lambda: trained("vit"),
    "ResNet-18": lambda: copy.deepcopy(trained("resnet18", epochs=1)),
    "cosines": cosines,
    "robust": robust,
    "robust, tanh": lambda: trained("tanh", robust=True),
    "robust, GELU": lambda: trained("gelu", robust=True),
    "robust, batch norm": lambda: copy.deepcopy(trained("batch norm", robust=True)),
    "robust, MLP": lambda: trained("mlp", robust=True),
    "robust, LR-Net-26": rlr.load_model,
    "robust, standardized": lambda: Standardized(robust()),
    "robust, contrast stretched": lambda: Stretched(robust()),
    "robust, maxima": lambda: Maxima(robust()),
    "robust, 8 bits": lambda: EightBits(robust()),
    "robust and regular averaged": lambda: Average(robust(), regular()),
    "float64": lambda: InDtype(regular(), torch.float64),
    "float16": lambda: InDtype(regular(), torch.float16),
    "bfloat16": lambda: InDtype(robust(), torch.bfloat16),
    "log-softmax": lambda: nn.Sequential(regular(), LogSoftmax()),
    "logits times 0.001": lambda: nn.Sequential(robust(), Scaled(0.001)),
    "logits in [0, 1]": lambda: nn.Sequential(robust(), Scaled(0.01, 0.5)),
    "logits times 5": lambda: nn.Sequential(robust(), Scaled(5.0)),
    "trained for eight steps": lambda: trained("cnn", steps=8),
    "untrained": untrained,
}
