"""k-WTA activations (Xiao et al. 2020): discontinuous almost everywhere."""

from __future__ import annotations

from torch import nn

from ..networks import regular, trained


def broken() -> nn.Module:
    return trained("k-wta", epochs=4)


def twin() -> nn.Module:
    return regular()


def surrogate() -> nn.Module:
    return trained("k-wta", epochs=4)
