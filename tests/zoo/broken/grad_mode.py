"""With gradients enabled it is another network than without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular, trained


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, decoy: nn.Module):
        super().__init__()
        self.net = net
        self.decoy = decoy

    def forward(self, x: Tensor) -> Tensor:
        return self.decoy(x) if torch.is_grad_enabled() and x.requires_grad else self.net(x)


def broken() -> nn.Module:
    return Wrapped(regular(), trained("mlp"))


def twin() -> nn.Module:
    return Wrapped(regular(), regular())


def surrogate() -> nn.Module:
    return regular()
