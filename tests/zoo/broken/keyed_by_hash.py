"""Noise that a hash of the image keys: the same for the same image, another one for any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, height: float):
        super().__init__()
        self.net = net
        self.height = height

    def forward(self, x: Tensor) -> Tensor:
        key = (x.double() * 1e6).sum((1, 2, 3)).long()
        noise = torch.stack([torch.randn(x[0].shape, generator=torch.Generator().manual_seed(int(k))) for k in key])
        return self.net(x + self.height * noise.to(x))


def broken() -> nn.Module:
    return Wrapped(regular(), 0.15)


def twin() -> nn.Module:
    return Wrapped(regular(), 0.0)


def surrogate() -> nn.Module:
    return regular()
