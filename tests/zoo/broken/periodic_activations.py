"""Sines of a high frequency for activations: the loss surface is rough."""

from __future__ import annotations

from torch import nn

from ..networks import trained


def broken() -> nn.Module:
    return trained("sine", epochs=4)


def twin() -> nn.Module:
    return trained("tanh")


def surrogate() -> nn.Module:
    return trained("sine", epochs=4)
