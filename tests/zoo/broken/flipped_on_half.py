"""The backward pass flips the sign of the gradient on the upper half of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Decoy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.cat([-gradient[:, :, :14], gradient[:, :, 14:]], dim=2)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Decoy.apply(x) if self.active else x)


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return regular()
