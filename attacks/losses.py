"""Objectives that attacks ascend, one value per image: targeted and untargeted losses of logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError

Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits [N, classes], labels [N], targets [N] or None) -> [N], larger the nearer the attack is to its aim."""


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Cross-entropy of the labels, or the negative one of the targets."""
    if targets is None:
        return F.cross_entropy(logits, labels, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Carlini and Wagner 2017: by how much the best other logit exceeds the label's, or the target's the best other.

    Positive exactly where the attack is at its aim.
    """
    return -lead(logits, labels) if targets is None else lead(logits, targets)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equations 6 and 7): does not change with the logits' scale.

    Raises:
        InputError: fewer than three classes, or four for a targeted attack: the ratio needs as many logits.
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise InputError(f"the DLR loss needs {needed} classes, not {logits.shape[1]}: use 'cross-entropy' or 'margin'")
    rows = torch.arange(len(logits), device=logits.device)
    ordered, order = logits.sort(dim=1)
    if targets is None:
        first = (order[:, -1] == labels).to(logits.dtype)  # as in the official code, whose rounding this is
        above_others = logits[rows, labels] - ordered[:, -2] * first - ordered[:, -1] * (1 - first)
        return -above_others / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    spread = ordered[:, -1] - 0.5 * ordered[:, -3] - 0.5 * ordered[:, -4]
    return -(logits[rows, labels] - logits[rows, targets]) / (spread + 1e-12)


def difference(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The target's logit minus the label's: zero at the boundary between the two classes."""
    assert targets is not None, "the difference of logits needs targets"
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def lead(logits: Tensor, classes: Tensor) -> Tensor:
    """By how much the logits of ``classes`` exceed the best of the others, [N]."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)


LOSSES: dict[str, Objective] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
