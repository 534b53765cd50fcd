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
from .batch_state import Rows, add_elapsed_time, initial_rows
from .model_under_test import Bench


def classify_clean_images(
    batches: Iterable[Batch], protocol: Protocol, bench: Bench, device: torch.device, targets: Targets | None = None
) -> Iterator[Rows]:
    """Load images, classify them and choose their targets; yield rows that are ready to be attacked."""
    for images, labels, ids in regroup_batches(batches, bench.rows if bench.fixed else None):
        check_images(images, ids)
        began = time.perf_counter()
        x, label, id_ = (column.to(device, non_blocking=True) for column in (images, labels, ids))
        passes = bench.verdict_logits(x, id_, torch.zeros_like(id_))
        target = None
        if targets is not None:
            target = targets.of(id_, label)
        elif protocol.targeted:
            target = protocol.goals(
                partial(return_known_logits, passes.mean(0)), x, label, id_, bench.num_classes, seed=bench.seed
            )
        rows = initial_rows(images, x, id_, label, target, passes, protocol, keep_images=bench.keep_images)
        yield add_elapsed_time(rows, began)


def return_known_logits(value: Tensor, _: Tensor) -> Tensor:
    """Stand in for a model whose logits are already known."""
    return value


def regroup_batches(batches: Iterable[Batch], rows: int | None) -> Iterator[Batch]:
    """Yield the same images ``rows`` at a time (fewer at the end), so that no pass is padded needlessly."""
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
