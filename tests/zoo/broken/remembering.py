"""Remembers images that it has seen, and answers images close to them as it did then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, radius: float):
        super().__init__()
        self.net = net
        self.radius = radius
        self.memory: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        rows = []
        for image, logits in zip(x.detach(), out, strict=True):
            near = [known for known, seen in self.memory if float((seen - image).abs().max()) <= self.radius]
            if not near and len(self.memory) < 4000:
                self.memory.append((logits.detach().clone(), image.clone()))
            rows.append(near[0] + 0 * logits + 1e-3 * (logits.flip(0) - logits.flip(0).detach()) if near else logits)
        return torch.stack(rows)


def broken() -> nn.Module:
    return Wrapped(regular(), 17 / 255)


def twin() -> nn.Module:
    return Wrapped(regular(), -1.0)


def surrogate() -> nn.Module:
    return regular()
