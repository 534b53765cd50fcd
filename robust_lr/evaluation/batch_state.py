"""The state of the images under evaluation: named tensors with one row per image, which become rows of the ledger.

Every column that outlives one attack is made in ``initial_rows`` and written by ``ledger_rows``. An attack in progress
adds its own columns and drops them when it ends.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import lead
from ..protocols.base import Protocol
from ..results.ledger import Row

Rows = dict[str, Tensor]


def size(rows: Rows) -> int:
    """Return the number of images."""
    return len(next(iter(rows.values()))) if rows else 0


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenate the rows of all ``parts``, which have the same columns; parts without rows (``{}``) are skipped."""
    full = [part for part in parts if part]
    if len(full) < 2:
        return full[0] if full else {}
    return {name: torch.cat([part[name] for part in full]) for name in full[0]}


def split(rows: Rows, mask: Tensor) -> tuple[Rows, Rows]:
    """Return the rows where ``mask``, a CPU tensor, holds, and the other rows; ``{}`` stands for no rows."""
    if not rows or bool(mask.all()):
        return rows, {}
    if not bool(mask.any()):
        return {}, rows
    here, there = (part.nonzero()[:, 0].to(next(iter(rows.values())).device) for part in (mask, ~mask))
    return ({name: c[here] for name, c in rows.items()}, {name: c[there] for name, c in rows.items()})


def split_first(rows: Rows, n: int) -> tuple[Rows, Rows]:
    """Return the first ``n`` rows, and the other rows, as views; ``{}`` stands for no rows."""
    if n >= size(rows):
        return rows, {}
    if n <= 0:
        return {}, rows
    return {name: column[:n] for name, column in rows.items()}, {name: column[n:] for name, column in rows.items()}


def add_elapsed_time(rows: Rows, began: float) -> Rows:
    """Add to each row its share of the time since ``began``."""
    return {**rows, "seconds": rows["seconds"] + (time.perf_counter() - began) / size(rows)}


def initial_rows(
    images: Tensor,
    x: Tensor,
    ids: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    passes: Tensor,
    protocol: Protocol,
    *,
    keep_images: bool = False,
) -> Rows:
    """Make every column for images that have not been attacked yet.

    Under the worst-seen criterion, images that already are at the attack's aim are decided: an untargeted attack need
    not run on images that are misclassified anyway.

    Args:
        images: clean images on the CPU, from which the hashes are computed.
        x, ids, labels: the same images on the model's device, with their ids and classes.
        targets: classes that the attack aims at; None for an untargeted attack.
        passes: logits for ``x``, [passes, N, classes]. A random model has several passes: one at the attack's aim is a
            success, and the prediction is that of their mean.
        keep_images: add the column "finished", the image that the verdict rests on.
    """
    none = torch.full_like(labels, -1)
    zero = torch.zeros_like(labels)
    no, yes = zero.bool(), ~zero.bool()
    logits = passes.mean(0)
    clean, predictions = logits.argmax(1), passes.argmax(2)
    loss = F.cross_entropy(logits, labels, reduction="none")
    aimed = None if targets is None else F.cross_entropy(logits, targets, reduction="none")
    aim = clean == targets if targets is not None else clean != labels
    wrong = predictions != labels
    reached = (predictions == targets if targets is not None else wrong).any(0)
    recorded = (len(labels), len(protocol.record))
    return {
        # the image
        "x": x,
        "id": ids,
        "hash": input_hashes(images).to(x.device),
        "label": labels,
        "target": none if targets is None else targets,
        # the model on the clean image: prediction, loss, and classes from the likeliest to the least likely
        "clean": clean,
        "clean_loss": loss,
        "ranking": logits.argsort(dim=1, descending=True, stable=True),
        # verdicts so far, see ``ledger.Row``
        "decided": reached if protocol.criterion == "worst" else no,  # leaves the attack
        "robust_last": yes,  # right at the last iterate of every restart so far
        "success": reached & ~aim,  # differ only if a random model's passes disagree with their mean
        "first_success": none,
        "first_wrong": torch.where(wrong.any(0), 0, -1),
        "right_at": yes[:, None].expand(recorded),  # per recorded step: right in every restart so far
        "reached_at": no[:, None].expand(recorded),  # per recorded step: at the aim in any restart so far
        "part": none,  # number of the attack that broke the image
        "unconfirmed": zero,
        # figures on the finished image and on the way
        **({"wrong_passes": wrong.sum(0)} if len(passes) > 1 else {}),
        **({"finished": x} if keep_images else {}),
        **({} if aimed is None else {"clean_target_loss": aimed, "target_loss": aimed}),
        "adversarial": clean,
        "loss": loss,
        "margin": torch.stack([lead(each, labels) for each in passes]).amin(0),
        "lead": torch.full_like(loss, torch.inf),  # of the true class on finished images, smallest over all restarts
        "distance": torch.zeros_like(loss),
        # work
        "draw": zero,  # number of finished draws: restarts times targets
        "steps_skipped": zero,
        "zero_gradients": zero,
        "forwards": torch.full_like(zero, len(passes)),
        "backwards": zero,
        "seconds": torch.zeros_like(zero, dtype=torch.float64),
    }


def input_hashes(images: Tensor) -> Tensor:
    """Return the first 64 bits of each image's SHA-256, [N] int64."""
    digests = (hashlib.sha256(image.tobytes()).digest()[:8] for image in images.contiguous().numpy())
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def ledger_rows(rows: Rows, protocol: Protocol, parts: Sequence[str]) -> list[Row]:
    """Turn finished rows into rows of the ledger; ``parts`` names the attacks of a cascade."""
    columns = {name: column.tolist() for name, column in rows.items() if name not in ("x", "ranking", "finished")}
    last = protocol.criterion == "last"
    return [
        Row(
            id=row["id"],
            input_hash=f"{row['hash'] & (2**64 - 1):016x}",
            label=row["label"],
            target=row["target"] if protocol.targeted else None,
            clean=row["clean"],
            adversarial=row["adversarial"],
            robust=row["robust_last"] if last else row["first_wrong"] < 0,
            robust_worst_seen=row["first_wrong"] < 0,
            success=row["success"],
            first_success=None if row["first_success"] < 0 else row["first_success"],
            first_wrong=None if row["first_wrong"] < 0 else row["first_wrong"],
            clean_loss=row["clean_loss"],
            zero_gradients=row["zero_gradients"],
            margin=row["margin"],
            loss=row["loss"],
            distance=row["distance"],
            broken_by=None if row["part"] < 0 else parts[row["part"]],
            record="".join(
                "t" if reached and protocol.targeted else "r" if right else "w"
                for right, reached in zip(row["right_at"], row["reached_at"], strict=True)
                if last
            ),
            clean_target_loss=row.get("clean_target_loss"),
            target_loss=row.get("target_loss"),
            robust_rounded=row.get("robust_rounded"),
            wrong_passes=row.get("wrong_passes"),
            unconfirmed=row["unconfirmed"],
            steps_skipped=row["steps_skipped"],
            forwards=row["forwards"],
            backwards=row["backwards"],
            seconds=row["seconds"],
        )
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    ]
