"""The network runs without gradients; a small linear one beside it has some."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular, trained


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, decoy: nn.Module):
        super().__init__()
        self.net = net
        self.decoy, self.weight = decoy, 1e-3

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.net(x)
        return logits + self.weight * self.decoy(x)


def broken() -> nn.Module:
    return Wrapped(regular(), trained("linear"))


def twin() -> nn.Module:
    return regular()


def surrogate() -> nn.Module:
    return regular()
