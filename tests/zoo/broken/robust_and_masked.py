"""An adversarially trained network whose gradient is flipped on part of the image: inflated by less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import robust


class Decoy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.cat([-gradient[..., :16], gradient[..., 16:]], dim=3)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Decoy.apply(x) if self.active else x)


def broken() -> nn.Module:
    return Wrapped(robust(), True)


def twin() -> nn.Module:
    return Wrapped(robust(), False)


def surrogate() -> nn.Module:
    return robust()
