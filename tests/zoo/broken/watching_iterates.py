"""Keeps the last batch; a batch that is close to it, as the next iterate is, gets the gradient of noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        close = self.last is not None and self.last.shape == x.shape and bool((self.last - x).abs().max() < 3 / 255)
        self.last = x.detach().clone()
        if close and self.active:
            x = x.detach() + (x - x.detach()) * torch.sign(torch.sin(1e4 * x.detach()))
        return self.net(x)


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return regular()
