"""The gradient is scaled down until most of it is zero in float32."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, factor: float):
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        tiny = x * self.factor - (x * self.factor).detach()
        return self.net(x.detach() + tiny)


def broken() -> nn.Module:
    return Wrapped(regular(), 1e-44)


def twin() -> nn.Module:
    return Wrapped(regular(), 1.0)


def surrogate() -> nn.Module:
    return regular()
