"""The pass over the clean images that comes before every attack."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..attacks.arguments import check_images
from ..data.dataset import Batch
from ..protocols.base import Protocol
from ..results.targets import Targets
from .batch_state import Rows, initial_rows, timed
from .model_under_test import Bench


def known(
    batches: Iterable[Batch], protocol: Protocol, bench: Bench, device: torch.device, targets: Targets | None = None
) -> Iterator[Rows]:
    """Load images, classify them and choose their targets: rows that attacks can begin with."""
    for images, labels, ids in regrouped(batches, bench.rows if bench.fixed else None):
        check_images(images, ids)
        began = time.perf_counter()
        x, label, id_ = (column.to(device, non_blocking=True) for column in (images, labels, ids))
        passes = bench.verdicts(x, id_, torch.zeros_like(id_))
        target = None
        if targets is not None:
            target = targets.of(id_, label)
        elif protocol.targeted:
            target = protocol.goals(partial(always, passes.mean(0)), x, label, id_, bench.num_classes, seed=bench.seed)
        rows = initial_rows(images, x, id_, label, target, passes, protocol, keep_images=bench.keep_images)
        yield timed(rows, began)


def always(value: Tensor, _: Tensor) -> Tensor:
    """A model that is known to return ``value``."""
    return value


def regrouped(batches: Iterable[Batch], rows: int | None) -> Iterator[Batch]:
    """The same images, ``rows`` at a time (the last ones fewer), so that no pass is padded without need."""
    if rows is None:
        yield from batches
        return
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(len(ids) for _, _, ids in waiting) >= rows:
            images, labels, ids = (torch.cat(columns) for columns in zip(*waiting, strict=True))
            yield images[:rows], labels[:rows], ids[:rows]
            waiting = [(images[rows:], labels[rows:], ids[rows:])]
    if any(len(ids) for _, _, ids in waiting):
        images, labels, ids = (torch.cat(columns) for columns in zip(*waiting, strict=True))
        yield images, labels, ids
