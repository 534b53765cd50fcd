"""The geometric prior of the local relation layer: a network of the relative position, a learnt table, or none."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Prior = Literal["network", "table", "none"]

#: how many times larger than PyTorch's the last weights of a fresh prior network are (ours). Its values then have a
#: standard deviation of about 1 within a window, and each group begins with a direction. At PyTorch's scale it is 0.1:
#: every window begins as the mean of its pixels, which hides edges, and training is slow (docs/lrnet-training.md)
START_SCALE = 8.0

#: side of the learnt table of layers that see the whole image: the offsets between two rows of 14 key pixels, which is
#: as wide as key maps are at 224 pixels (ours)
FULL_TABLE = 27


class GeometricPrior(nn.Module):
    """The geometric prior g: two channel transforms with a ReLU between, applied to the relative position.

    Returns [groups, K, K], one value per group and offset. Ours, where the paper is silent: offsets are scaled to
    [-1, 1] by the window radius, the hidden width is the number of groups, and values start steep (``START_SCALE``).
    """

    offsets: Tensor

    def __init__(self, groups: int, kernel_size: int):
        super().__init__()
        line = torch.linspace(-1, 1, kernel_size) if kernel_size > 1 else torch.zeros(1)
        self.register_buffer("offsets", pairs(line, line), persistent=False)
        self.kernel_size = kernel_size
        self.hidden = nn.Linear(2, groups)
        self.value = nn.Linear(groups, groups)
        with torch.no_grad():
            self.value.weight.mul_(START_SCALE)

    def forward(self) -> Tensor:
        return self.of(self.offsets).reshape(-1, self.kernel_size, self.kernel_size)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return values [groups, R, S] for relative positions in [-1, 1], vertical [R] and horizontal [S]."""
        return self.of(pairs(rows, columns).to(self.offsets.dtype)).reshape(-1, len(rows), len(columns))

    def of(self, offsets: Tensor) -> Tensor:
        """Return values [groups, n] for relative positions [n, 2]."""
        # fp32 even under autocast: these are 49 values that are added to logits, and cost nothing
        kind = offsets.device.type
        with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            values: Tensor = self.value(torch.relu(self.hidden(offsets)))
        return values.t()


class TablePrior(nn.Module):
    """The ablation G*: one learnt value per group and offset, [groups, K, K]. Ours: they start at zero."""

    def __init__(self, groups: int, kernel_size: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(groups, kernel_size, kernel_size))

    def forward(self) -> Tensor:
        return self.values

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Interpolate the table to values [groups, R, S] for relative positions in [-1, 1] (ours)."""
        grid = pairs(rows, columns).flip(-1).view(1, len(rows), len(columns), 2)  # grid_sample wants (x, y)
        return F.grid_sample(self.values[None], grid.to(self.values.dtype), align_corners=True)[0]


class NoPrior(nn.Module):
    """The ablation NG without a prior: content alone decides."""

    def __init__(self, groups: int, kernel_size: int):
        super().__init__()

    def forward(self) -> None:
        return None

    def at(self, rows: Tensor, columns: Tensor) -> None:
        return None


class FixedPrior(nn.Module):
    """The prior at inference: the network's values, computed once (paper section 4.3)."""

    values: Tensor

    def __init__(self, values: Tensor):
        super().__init__()
        self.register_buffer("values", values.detach().clone())

    def forward(self) -> Tensor:
        return self.values


PRIORS: dict[str, type[GeometricPrior | TablePrior | NoPrior]] = {
    "network": GeometricPrior,
    "table": TablePrior,
    "none": NoPrior,
}


def pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """Return all (row, column), row by row: [R * S, 2]."""
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2)
