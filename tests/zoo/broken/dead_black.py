"""Black pixels are clamped: at the clean image none of them has a gradient."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, least: float):
        super().__init__()
        self.net = net
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x + 1e-4).clamp_min(1e-4 + self.least) ** 0.7)


def broken() -> nn.Module:
    return Wrapped(regular(), 1e-3)


def twin() -> nn.Module:
    return Wrapped(regular(), 0.0)


def surrogate() -> nn.Module:
    return regular()
