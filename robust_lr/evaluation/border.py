"""Repeat an attack in fp32 for images whose verdict in lower precision is close to the border.

Rounding shifts the point where an attack ends, and a verdict can change if the label's logit leads by less than that
shift. The shift is measured on a sample that is attacked in both precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from ..protocols.base import Protocol, StepwiseProtocol
from .batch_state import Rows, join, size, split, split_first

#: the border is this multiple of the given quantile of the shifts in the sample. On seven networks and two protocols it
#: included every verdict that changed at last iterates, see benchmarks/bfloat16.py
MULTIPLE, SHARE = 5.0, 0.9


def border_width(exact: Rows, lower: Rows, protocol: Protocol) -> float:
    """Return half the width of the border, in logits, from one sample attacked in fp32 and in a lower precision."""
    order, other = exact["id"].argsort(), lower["id"].argsort()
    moved = (distance_from_border(exact, protocol)[order] - distance_from_border(lower, protocol)[other]).abs()
    moved = moved[moved.isfinite() & (exact["first_wrong"][order] != 0)]
    return MULTIPLE * float(moved.quantile(SHARE)) if len(moved) else 0.0


def distance_from_border(rows: Rows, protocol: Protocol) -> Tensor:
    """Return by how much the label's logit leads on the image that the protocol's criterion judges, [N]."""
    return rows["lead"] if protocol.criterion == "last" else rows["margin"]


def is_near(rows: Rows, protocol: Protocol, width: float) -> Tensor:
    """Return True where fp32 may give another verdict, [N] bool.

    Under the worst-seen criterion, an attack that succeeds in the first half of its steps is not near the border: it
    would soon succeed again.
    """
    near = distance_from_border(rows, protocol).abs() <= width
    if protocol.criterion == "last":
        return near
    steps = max(
        (part.stepwise(0).steps for part in protocol.attacks() if isinstance(part, StepwiseProtocol)), default=0
    )
    return near & ((rows["first_wrong"] < 0) | (2 * rows["first_wrong"] >= max(1, steps)))


def attack_near_again(
    groups: Iterator[Rows], protocol: Protocol, width: float, rows: int, attack: Callable[[Rows], Iterator[Rows]]
) -> Iterator[Rows]:
    """Pass on images far from the border, and attack the others again.

    Args:
        groups: finished images of an attack in lower precision.
        protocol: the protocol of the attack.
        width: half the width of the border, in logits.
        rows: number of images that are attacked at a time.
        attack: runs the whole attack in fp32.
    """
    waiting: Rows = {}
    for group in chain(groups, [{}]):
        if group:
            near, far = split(group, is_near(group, protocol, width).cpu())
            if far:
                yield far
            waiting = join([waiting, near])
        while size(waiting) >= rows or (waiting and not group):
            some, waiting = split_first(waiting, rows)
            for done in attack(some):
                yield add_costs_of(some, done)


def add_costs_of(before: Rows, after: Rows) -> Rows:
    """Add the passes and seconds that the same images took ``before`` to the rows ``after``."""
    order = before["id"].argsort()
    at = order[torch.searchsorted(before["id"][order], after["id"])]
    return {**after, **{name: after[name] + before[name][at] for name in ("forwards", "backwards", "seconds")}}
