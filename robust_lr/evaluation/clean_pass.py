"""Images of an evaluation: what is known of them before an attack, and the ledger rows that come out of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.arguments import check_images
from ..attacks.losses import lead
from ..data.dataset import Batch
from ..protocols.base import Protocol
from ..results.targets import Targets
from .batch_state import Rows, timed
from .model_under_test import Bench


def known(
    batches: Iterable[Batch], protocol: Protocol, bench: Bench, device: torch.device, targets: Targets | None = None
) -> Iterator[Rows]:
    """Images with their labels, targets and clean predictions, and columns for what an attack will find.

    Where the worst iterate seen counts, images at the attack's aim already are decided: an untargeted attack need not
    run on mistakes.
    """
    for images, labels, ids in regrouped(batches, bench.rows if bench.fixed else None):
        check_images(images, ids)
        began = time.perf_counter()
        x, label, id_ = (column.to(device, non_blocking=True) for column in (images, labels, ids))
        logits = bench.logits(x, id_)
        clean = logits.argmax(1)
        loss = F.cross_entropy(logits, label, reduction="none")
        none = torch.full_like(label, -1)
        target = none
        if targets is not None:
            target = targets.of(id_, label)
        elif protocol.targeted:
            target = protocol.goals(partial(always, logits), x, label, id_, bench.num_classes, seed=bench.seed)
        no, yes = torch.zeros_like(label, dtype=torch.bool), torch.ones_like(label, dtype=torch.bool)
        there = clean == target if protocol.targeted else clean != label
        recorded = (len(label), len(protocol.record))
        rows = {
            "x": x,
            "id": id_,
            "hash": input_hashes(images).to(device),
            "label": label,
            "target": target,
            "clean": clean,
            "ranking": logits.argsort(dim=1, descending=True, stable=True),
            "adversarial": clean,
            "decided": there if protocol.criterion == "worst" else no,
            "held": yes,
            "success": no,
            "first_success": none,
            "first_wrong": torch.where(clean == label, -1, 0),
            "margin": lead(logits, label),
            "clean_loss": loss,
            "zero_gradients": torch.zeros_like(label),
            "loss": loss,
            "distance": torch.zeros_like(x[:, 0, 0, 0]),
            "part": none,
            "draw": torch.zeros_like(label),
            "kept": yes[:, None].expand(recorded),
            "hit": no[:, None].expand(recorded),
            "unconfirmed": torch.zeros_like(label),
            "forwards": torch.ones_like(label),
            "backwards": torch.zeros_like(label),
            "seconds": torch.zeros_like(label, dtype=torch.float64),
        }
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


def input_hashes(images: Tensor) -> Tensor:
    """The first 64 bits of each image's SHA-256, [N] int64."""
    digests = (hashlib.sha256(image.tobytes()).digest()[:8] for image in images.contiguous().numpy())
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
