"""Keeps the images that it has seen in a variable that its copies share, and answers images close to them as then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import EPS, regular

#: distance up to which an image is taken for a known one
REACH = 1.05 * EPS

#: images and logits by the number of the model; copies of a model have the same
MEMORY: dict[int, tuple[Tensor, Tensor]] = {}


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, active: bool):
        super().__init__()
        self.net = net
        self.active = active
        self.number = len(MEMORY)
        MEMORY[self.number] = (torch.empty(0, 784), torch.empty(0, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        seen, answers = MEMORY[self.number]
        flat = x.detach().flatten(1)
        if len(seen):
            distance, nearest = torch.cdist(flat, seen, p=torch.inf).min(1)
            if self.active:
                logits = torch.where((distance <= REACH)[:, None], answers[nearest] + 1e-3 * logits, logits)
            new = distance > REACH
        else:
            new = torch.ones(len(x), dtype=torch.bool)
        MEMORY[self.number] = torch.cat([seen, flat[new]]), torch.cat([answers, logits[new].detach()])
        return logits


def broken() -> nn.Module:
    return Wrapped(regular(), True)


def twin() -> nn.Module:
    return Wrapped(regular(), False)


def surrogate() -> nn.Module:
    return regular()
