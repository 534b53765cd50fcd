"""Counts its passes: after the first few with gradients, the gradients are those of another image."""

from __future__ import annotations

from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, patience: int):
        super().__init__()
        self.net = net
        self.passes, self.patience = 0, patience

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.passes += 1
        if self.passes > self.patience:
            x = x.detach() + 0.1 * (x - x.detach()).flip(2, 3)
        return self.net(x)


def broken() -> nn.Module:
    return Wrapped(regular(), 6)


def twin() -> nn.Module:
    return Wrapped(regular(), 10**9)


def surrogate() -> nn.Module:
    return regular()
