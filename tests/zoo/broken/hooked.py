"""A hook on the image replaces its gradient by noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and self.active:
            y = x * 1.0
            y.register_hook(lambda gradient: gradient.roll((5, 9), (2, 3)))
            return self.net(y)
        return self.net(x)


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return regular()
