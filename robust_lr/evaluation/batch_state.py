"""Tensors by name with one row an image: what is known of the images of an evaluation while it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..protocols.base import Protocol
from ..results.ledger import Row

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


def timed(rows: Rows, began: float) -> Rows:
    """Each row gets its share of the time since ``began``."""
    return {**rows, "seconds": rows["seconds"] + (time.perf_counter() - began) / size(rows)}


def ledger_rows(rows: Rows, protocol: Protocol, parts: Sequence[str]) -> list[Row]:
    """Finished rows as they are written down; ``parts`` names the attacks of a cascade."""
    columns = {name: column.tolist() for name, column in rows.items() if name not in ("x", "ranking")}
    last = protocol.criterion == "last"
    return [
        Row(
            id=row["id"],
            input_hash=f"{row['hash'] & (2**64 - 1):016x}",
            label=row["label"],
            target=row["target"] if protocol.targeted else None,
            clean=row["clean"],
            adversarial=row["adversarial"],
            robust=row["held"] if last else row["first_wrong"] < 0,
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
                "t" if hit and protocol.targeted else "r" if kept else "w"
                for kept, hit in zip(row["kept"], row["hit"], strict=True)
                if last
            ),
            unconfirmed=row["unconfirmed"],
            forwards=row["forwards"],
            backwards=row["backwards"],
            seconds=row["seconds"],
        )
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    ]
