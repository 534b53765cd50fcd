"""A fast wave is added to the pixels: gradients point anywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, height: float, frequency: float):
        super().__init__()
        self.net = net
        self.height, self.frequency = height, frequency

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.height * torch.sin(self.frequency * x))


def broken() -> nn.Module:
    return Wrapped(regular(), 0.03, 600.0)


def twin() -> nn.Module:
    return Wrapped(regular(), 0.03, 6.0)


def surrogate() -> nn.Module:
    return regular()
