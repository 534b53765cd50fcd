"""Logits times a large factor: where the model is right, the gradient of cross-entropy underflows."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, factor: float):
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


def broken() -> nn.Module:
    return Wrapped(regular(), 30.0)


def twin() -> nn.Module:
    return Wrapped(regular(), 2.0)


def surrogate() -> nn.Module:
    return regular()
