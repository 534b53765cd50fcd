"""An adversarially trained network behind rounding, whose gradient passes as that of a shifted image."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import robust


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool, shift: int):
        super().__init__()
        self.net = net
        self.active, self.shift = active, shift

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 10).round() / 10 if self.active else x
        return self.net(rounded.detach() + (x - x.detach()).roll(self.shift, 3))


def broken() -> nn.Module:
    return Wrapped(robust(), True, 3)


def twin() -> nn.Module:
    return Wrapped(robust(), False, 0)


def surrogate() -> nn.Module:
    return robust()
