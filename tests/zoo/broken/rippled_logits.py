"""A fine ripple on the logits has a steeper slope than they have themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, height: float):
        super().__init__()
        self.net = net
        self.height = height

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + self.height * torch.sin(300 * logits)


def broken() -> nn.Module:
    return Wrapped(regular(), 0.2)


def twin() -> nn.Module:
    return Wrapped(regular(), 0.0)


def surrogate() -> nn.Module:
    return regular()
