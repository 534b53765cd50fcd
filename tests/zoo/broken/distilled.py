"""Defensive distillation (Papernot et al. 2016): trained at a high temperature, used at 1."""

from __future__ import annotations

import torch
from torch import nn

from ..networks import trained


def broken() -> nn.Module:
    return trained("cnn", temperature=40.0, epochs=4)


def twin() -> nn.Module:
    return trained("cnn", temperature=2.0)


def surrogate() -> nn.Module:
    return nn.Sequential(broken(), Divided())


class Divided(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z / 40
