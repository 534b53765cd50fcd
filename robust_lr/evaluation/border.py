"""Verdicts of an attack in lower precision that are near the border: the whole attack is made again in fp32.

Rounding moves where an attack ends, and verdicts change where the label's logit leads by less than that. How far it
moves is seen on a sample, which is attacked in both precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from ..protocols.base import Protocol, StepwiseProtocol
from .batch_state import Rows, first, join, size, split

#: the border is so many times as wide as what this share of the sample stays below. On seven networks and two
#: protocols it took in every verdict that changed at last iterates, see benchmarks/bfloat16.py
MULTIPLE, SHARE = 5.0, 0.9


def width(exact: Rows, lower: Rows, protocol: Protocol) -> float:
    """Half the width of the border, in logits, from one sample attacked in fp32 and in a lower precision."""
    order, other = exact["id"].argsort(), lower["id"].argsort()
    moved = (distance(exact, protocol)[order] - distance(lower, protocol)[other]).abs()
    moved = moved[moved.isfinite() & (exact["first_wrong"][order] != 0)]
    return MULTIPLE * float(moved.quantile(SHARE)) if len(moved) else 0.0


def distance(rows: Rows, protocol: Protocol) -> Tensor:
    """By how much the label's logit leads where the protocol's criterion looks, [N]."""
    return rows["lead"] if protocol.criterion == "last" else rows["margin"]


def is_near(rows: Rows, protocol: Protocol, width: float) -> Tensor:
    """Return True where fp32 may give another verdict, [N] bool.

    Under the worst-seen criterion that is no question where an attack succeeds in the first half of its steps: it would
    soon succeed again.
    """
    near = distance(rows, protocol).abs() <= width
    if protocol.criterion == "last":
        return near
    steps = max(
        (part.stepwise(0).steps for part in protocol.attacks() if isinstance(part, StepwiseProtocol)), default=0
    )
    return near & ((rows["first_wrong"] < 0) | (2 * rows["first_wrong"] >= max(1, steps)))


def attack_near_again(
    groups: Iterator[Rows], protocol: Protocol, width: float, rows: int, attack: Callable[[Rows], Iterator[Rows]]
) -> Iterator[Rows]:
    """Pass on what is far from the border, and attack the others again.

    Args:
        groups: finished images of an attack in lower precision.
        rows: images that are attacked at a time.
        attack: in fp32, from the beginning.
    """
    waiting: Rows = {}
    for group in chain(groups, [{}]):
        if group:
            near, far = split(group, is_near(group, protocol, width).cpu())
            if far:
                yield far
            waiting = join([waiting, near])
        while size(waiting) >= rows or (waiting and not group):
            some, waiting = first(waiting, rows)
            for done in attack(some):
                yield with_costs_of(some, done)


def with_costs_of(before: Rows, after: Rows) -> Rows:
    """Add the passes and seconds that the same images took ``before`` to the rows ``after``."""
    order = before["id"].argsort()
    at = order[torch.searchsorted(before["id"][order], after["id"])]
    return {**after, **{name: after[name] + before[name][at] for name in ("forwards", "backwards", "seconds")}}
