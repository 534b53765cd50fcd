"""Features rounded to steps, which have no gradient; a weak path beside them has one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, steps: float, leak: float):
        super().__init__()
        self.net = net
        self.steps, self.leak = steps, leak
        self.register_buffer("weight", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        features = self.net[:2](x)
        rounded = (features * self.steps).round() / self.steps
        return self.net[2:](rounded.detach() + self.leak * features - self.leak * features.detach() * self.weight)


def broken() -> nn.Module:
    return Wrapped(regular(), 2, 1e-3)


def twin() -> nn.Module:
    return Wrapped(regular(), 1000, 1.0)


def surrogate() -> nn.Module:
    return regular()
