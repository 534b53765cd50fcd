"""A checkerboard of pixels, fixed by the content of the image, is replaced by its neighbors without gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.net(x)
        key = (255 * x).round().sum((1, 2, 3)).long() % 2
        board = (torch.arange(28)[:, None] + torch.arange(28)).to(x.device)
        mask = ((board[None] + key[:, None, None]) % 2 == 0)[:, None]
        smooth = F.avg_pool2d(x, 3, stride=1, padding=1)
        return self.net(torch.where(mask, smooth.detach(), x * 0.5 + 0.5 * smooth.detach()))


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return Wrapped(regular(), False)
