"""An adversarially trained network with steep logits."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import robust


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, factor: float):
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


def broken() -> nn.Module:
    return Wrapped(robust(), 100.0)


def twin() -> nn.Module:
    return Wrapped(robust(), 2.0)


def surrogate() -> nn.Module:
    return robust()
