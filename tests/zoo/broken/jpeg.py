"""The coefficients of a cosine transform are rounded, as JPEG does; a faint copy of the image has the gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import regular


def basis() -> Tensor:
    """DCT-II of eight points, orthonormal."""
    k, n = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    matrix = torch.cos(torch.pi * (n + 0.5) * k / 7) * (2 / 7) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, step: float, *, honest: bool):
        super().__init__()
        self.net = net
        self.step, self.honest = step, honest
        self.register_buffer("basis", basis())

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unfold(2, 7, 7).unfold(3, 7, 7)
        coefficients = self.basis @ blocks @ self.basis.T
        rounded = (coefficients / self.step).round() * self.step
        if self.honest:
            rounded = coefficients + (rounded - coefficients).detach()
        image = (self.basis.T @ rounded @ self.basis).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
        return self.net(image + 0.02 * (x.flip(2) - x.flip(2).detach()) if not self.honest else image)


def broken() -> nn.Module:
    return Wrapped(regular(), 0.5, honest=False)


def twin() -> nn.Module:
    return Wrapped(regular(), 0.01, honest=True)


def surrogate() -> nn.Module:
    return Wrapped(regular(), 0.5, honest=True)
