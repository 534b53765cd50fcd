"""Several noisy copies vote; votes have no gradient, and what is leaked comes from one copy alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, copies: int, *, honest: bool):
        super().__init__()
        self.net = net
        self.copies, self.honest = copies, honest

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        votes = torch.zeros(len(x), 10, device=x.device)
        for _ in range(self.copies):
            noise = 0.15 * torch.randn(x[0].shape, generator=generator).to(x)
            logits = self.net(x + noise)
            votes = votes + (logits if self.honest else F.one_hot(logits.argmax(1), 10).to(x.dtype) + 1e-4 * logits)
        return votes


def broken() -> nn.Module:
    return Wrapped(regular(), 7, honest=False)


def twin() -> nn.Module:
    return Wrapped(regular(), 3, honest=True)


def surrogate() -> nn.Module:
    return Wrapped(regular(), 7, honest=True)
