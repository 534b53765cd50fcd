"""The backward pass returns the gradient of the batch before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..networks import regular


class Delayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: Wrapped) -> Tensor:
        ctx.owner = owner
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        last, ctx.owner.last = ctx.owner.last, gradient.clone()
        usable = last is not None and last.shape == gradient.shape
        return (last if usable else gradient.flip(3)).roll(1, 0), None


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Delayed.apply(x, self) if self.active else x)


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return regular()
