"""From a protocol and a batch to adversarial images: goals and starts keyed by (seed, image id, draw), then the attack.

Training and evaluation share this path; a draw is a restart of an evaluation, or an epoch of training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..attacks import targets
from ..attacks.apgd import AutoPGD
from ..attacks.losses import LOSSES, Objective, margin
from ..attacks.pgd import ProjectedGradient, pgd_l2, pgd_linf
from ..attacks.square import SquareSearch
from ..attacks.stepwise import Stepwise
from ..utils.contexts import Model
from ..utils.errors import InputError
from ..utils.rng import RADIUS, START, normal, uniform
from .autoattack import APGD, Square, Stepped
from .pgd import PGD

#: standard deviation of a "normal" start, in pixels of [0, 1]
NORMAL = 0.001


def goals(
    protocol: PGD, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
) -> Tensor:
    """What the attack's loss is taken on, [N] int64: targets of a targeted attack, otherwise the labels."""
    if protocol.targeted and protocol.target == "least-likely":
        return targets.least_likely(model, x, labels)
    if protocol.targeted and protocol.target == "given":
        raise InputError("target = 'given': targets are given to evaluations only; use 'uniform' or 'least-likely'")
    if protocol.targeted:
        return targets.uniform(labels, ids, num_classes, seed=seed, draw=draw)
    if protocol.label == "predicted":
        with torch.no_grad():
            return model(x).argmax(1)
    return labels


def starts(part: Stepped, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """First iterates, like ``x``: the clean images, or at random in the ball, clipped to [0, 1].

    PGD starts uniformly in the ball or normally around the image, APGD at the surface of the ball (as the official code
    does), Square with stripes.
    """
    ids = ids.to(x.device)
    if isinstance(part, Square):
        return SquareSearch(part.eps, part.queries, part.p, seed).stripes(x, ids, draw)
    if part.start == "clean":
        return x
    if part.start == "normal":
        return (x + (NORMAL * normal(seed, START, ids, x.shape[1:], draw)).clamp(-part.eps, part.eps)).clamp(0, 1)
    surface = isinstance(part, APGD)
    if part.norm == "linf":
        noise = 2 * uniform(seed, START, ids, x.shape[1:], draw) - 1
        radius = 1 / noise.abs().amax(dim=(1, 2, 3), keepdim=True) if surface else 1.0
        return (x + part.eps * radius * noise).clamp(0, 1)
    noise = normal(seed, START, ids, x.shape[1:], draw)
    norm = noise.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()  # the same for any number of rows
    radius = 1.0 if surface else uniform(seed, RADIUS, ids, (1, 1, 1), draw) ** (1 / x[0].numel())
    return (x + part.eps * radius * (noise / norm).to(x.dtype)).clamp(0, 1)


def perturb(
    protocol: PGD,
    model: Model,
    x: Tensor,
    labels: Tensor,
    goals: Tensor,
    ids: Tensor,
    *,
    seed: int,
    draw: int = 0,
    start: Tensor | None = None,
    loss: Objective | None = None,
) -> Tensor:
    """Adversarial images of ``x`` [N, C, H, W] under ``protocol``; ``goals`` are the labels or the targets.

    ``start`` and ``loss`` take the place of the protocol's.
    """
    pgd = pgd_linf if protocol.norm == "linf" else pgd_l2
    return pgd(
        model,
        x,
        goals,
        eps=protocol.eps,
        step_size=protocol.step_size,
        steps=protocol.steps,
        targeted=protocol.targeted,
        start=starts(protocol, x, ids, seed=seed, draw=draw) if start is None else start,
        loss=LOSSES[protocol.loss] if loss is None else loss,
        momentum=protocol.momentum,
        true_labels=labels,
    )


def stepwise(part: Stepped, seed: int) -> tuple[Stepwise, Objective]:
    """The attack of a protocol as a sequence of queries, and what it ascends."""
    if isinstance(part, PGD):
        return ProjectedGradient(part.norm, part.eps, part.step_size, part.steps, part.momentum), LOSSES[part.loss]
    if isinstance(part, APGD):
        return AutoPGD(part.norm, part.eps, part.steps, part.rho), LOSSES[part.loss]
    return SquareSearch(part.eps, part.queries, part.p, seed), margin


def attempts(part: Stepped, num_classes: int) -> int:
    """Draws that an image gets at most: restarts, for each target where an attack has several."""
    if isinstance(part, APGD) and part.targets:
        return part.restarts * min(part.targets, num_classes - 1)
    return part.restarts


def aims(part: Stepped, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Classes that the loss of the next draw moves away from and towards, [N] each; -1 where there is none."""
    if isinstance(part, APGD) and part.targets:
        return rows["label"], rows["ranking"].gather(1, 1 + rows["draw"][:, None] // part.restarts)[:, 0]
    return rows["clean"] if part.label == "predicted" else rows["label"], rows["target"]
