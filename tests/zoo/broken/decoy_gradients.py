"""A custom backward pass returns noise instead of the gradient."""

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
        return torch.sin(1e4 * torch.arange(gradient.numel(), device=gradient.device)).view_as(gradient)


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
