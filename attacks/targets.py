"""Target classes for targeted attacks: never the true class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.rng import TARGET, integers


def uniform(labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0) -> Tensor:
    """Draw one of the wrong classes, each with the same probability (Xie et al. 2019).

    Args:
        labels: true classes, [N] int64.
        ids: image ids, [N] int64; with ``seed`` and ``draw`` they determine the target, independent of the batch.
        num_classes: at least 2.
        draw: number of the restart or epoch.

    Returns:
        Targets, [N] int64, on the device of ``labels``.

    Raises:
        InputError: fewer than two classes.
    """
    check_classes(num_classes)
    other = integers(seed, TARGET, ids.to(labels.device), num_classes - 1, draw)
    return other + (other >= labels).long()  # skip the true class


def least_likely(model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """Return the wrong class with the smallest logit on the clean image (Kurakin et al. 2017; the ALP release)."""
    with torch.no_grad():
        logits = model(x)
    check_classes(logits.shape[1])
    return logits.scatter(1, labels.view(-1, 1), torch.inf).argmin(dim=1)


def choose_targets(
    how: str,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    ids: Tensor,
    num_classes: int,
    *,
    seed: int,
    draw: int = 0,
) -> Tensor:
    """Choose targets, [N] int64, "uniform" or "least-likely"; InputError for "given", which cannot be chosen."""
    if how == "least-likely":
        return least_likely(model, x, labels)
    if how == "given":
        raise InputError("target = 'given': targets are given to evaluations only; use 'uniform' or 'least-likely'")
    return uniform(labels, ids, num_classes, seed=seed, draw=draw)


def check_targets(targets: Tensor, labels: Tensor, num_classes: int, *, ids: Tensor | None = None) -> Tensor:
    """Return ``targets`` after checking that each is a class other than the true one.

    Args:
        targets, labels: [N] int64.
        ids: [N], for naming images in errors; by default images are numbered.

    Raises:
        InputError: wrong shape or dtype, a target outside the classes, or equal to the true class.
    """
    ids = torch.arange(len(targets)) if ids is None else ids.cpu()
    if targets.shape != labels.shape or targets.dtype != torch.int64:
        raise InputError(
            f"targets {tuple(targets.shape)} {targets.dtype}: {len(labels)} int64 class indices are needed"
        )
    for wrong, why in (
        ((targets < 0) | (targets >= num_classes), f"is not a class: classes are 0 to {num_classes - 1}"),
        (targets == labels, "is its true class: choose another"),
    ):
        if wrong.any():
            raise InputError(f"target {int(targets[wrong][0])} of image {int(ids[wrong.cpu()][0])} {why}")
    return targets


def check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise InputError(
            f"a targeted attack needs a wrong class to aim at: num_classes = {num_classes}, at least 2 needed"
        )
