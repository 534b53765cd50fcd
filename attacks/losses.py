"""Objectives that attacks ascend, one value per image: targeted and untargeted losses of logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import InputError

Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits [N, classes], labels [N], targets [N] or None) -> [N]; the larger, the closer the attack is to its aim."""


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of the labels, or the negative cross-entropy of the targets."""
    if targets is None:
        return F.cross_entropy(logits, labels, reduction="none")
    return -F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the margin (Carlini and Wagner 2017), which is positive exactly where the attack is at its aim.

    That is the best other logit minus the label's, or the target's logit minus the best other.
    """
    return -lead(logits, labels) if targets is None else lead(logits, targets)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the difference of logits ratio (Croce and Hein 2020, equations 6 and 7), independent of the logits' scale.

    Raises:
        InputError: fewer than three classes, or four for a targeted attack, which are the logits that the ratio needs.
    """
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise InputError(f"the DLR loss needs {needed} classes, not {logits.shape[1]}: use 'cross-entropy' or 'margin'")
    rows = torch.arange(len(logits), device=logits.device)
    ordered, order = logits.sort(dim=1)
    if targets is None:
        first = (order[:, -1] == labels).to(logits.dtype)  # written as in the official code, for the same rounding
        above_others = logits[rows, labels] - ordered[:, -2] * first - ordered[:, -1] * (1 - first)
        return -above_others / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    spread = ordered[:, -1] - 0.5 * ordered[:, -3] - 0.5 * ordered[:, -4]
    return -(logits[rows, labels] - logits[rows, targets]) / (spread + 1e-12)


def logit_difference(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the target's logit minus the label's, which is zero at the boundary between the two classes."""
    assert targets is not None, "the difference of logits needs targets"
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def lead(logits: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the logits of ``classes`` exceed the best other logit, [N]."""
    own = logits.gather(1, classes[:, None])[:, 0]
    return own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)


LOSSES: dict[str, Objective] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
