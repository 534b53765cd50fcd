"""Tensors by name with one row an image: what is known of the images of an evaluation while it goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Rows = dict[str, Tensor]


def size(rows: Rows) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of all ``parts``, which have the same columns; empty ones (``{}``) may be among them."""
    full = [part for part in parts if part]
    if len(full) < 2:
        return full[0] if full else {}
    return {name: torch.cat([part[name] for part in full]) for name in full[0]}


def split(rows: Rows, mask: Tensor) -> tuple[Rows, Rows]:
    """The rows where ``mask``, a CPU tensor, holds, and the others; ``{}`` where there are none."""
    if not rows or bool(mask.all()):
        return rows, {}
    if not bool(mask.any()):
        return {}, rows
    here, there = (part.nonzero()[:, 0].to(next(iter(rows.values())).device) for part in (mask, ~mask))
    return ({name: c[here] for name, c in rows.items()}, {name: c[there] for name, c in rows.items()})


def first(rows: Rows, n: int) -> tuple[Rows, Rows]:
    """The first ``n`` rows, and the others."""
    return split(rows, torch.arange(size(rows)) < n)
