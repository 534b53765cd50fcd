"""From a protocol and a batch to adversarial images: goals and starts keyed by (seed, image id, draw), then the attack.

Training and evaluation share this path; a draw is a restart of an evaluation, or an epoch of training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attacks import targets
from .attacks.losses import LOSSES, Objective
from .attacks.pgd import ProjectedGradient, l2_norm, pgd_l2, pgd_linf
from .attacks.stepwise import Stepwise
from .bench import Bench, Model
from .kinds import PGD, Part
from .models.fold import fold
from .models.resnet import ResNet
from .rng import RADIUS, START, normal, uniform
from .rows import Rows

#: standard deviation of a "normal" start, in pixels of [0, 1]
NORMAL = 0.001


def goals(
    protocol: PGD, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
) -> Tensor:
    """What the attack's loss is taken on, [N] int64: targets of a targeted attack, otherwise the labels."""
    if protocol.targeted and protocol.target == "least-likely":
        return targets.least_likely(model, x, labels)
    if protocol.targeted:
        return targets.uniform(labels, ids, num_classes, seed=seed, draw=draw)
    if protocol.label == "predicted":
        with torch.no_grad():
            return model(x).argmax(1)
    return labels


def starts(part: Part, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
    """First iterates, like ``x``: clean, uniform in the ball, or normal around the image; clipped to [0, 1]."""
    if part.start == "clean":
        return x
    if part.start == "normal":
        noise = NORMAL * normal(seed, START, ids.to(x.device), x.shape[1:], draw)
        return (x + noise.clamp(-part.eps, part.eps)).clamp(0, 1)
    if part.norm == "linf":
        noise = 2 * uniform(seed, START, ids.to(x.device), x.shape[1:], draw) - 1
        return (x + part.eps * noise).clamp(0, 1)
    noise = normal(seed, START, ids.to(x.device), x.shape[1:], draw)
    radius = uniform(seed, RADIUS, ids.to(x.device), (1, 1, 1), draw) ** (1 / x[0].numel())
    return (x + part.eps * radius * noise / l2_norm(noise)).clamp(0, 1)


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


def stepwise(part: Part) -> tuple[Stepwise, Objective]:
    """The attack of a protocol as a sequence of queries, and what it ascends."""
    return ProjectedGradient(part.norm, part.eps, part.step_size, part.steps, part.momentum), LOSSES[part.loss]


def attempts(part: Part, bench: Bench) -> int:
    """Draws an image gets at most."""
    return part.restarts


def aims(part: Part, rows: Rows) -> tuple[Tensor, Tensor]:
    """Classes that the loss of the next draw moves away from and towards, [N] each; -1 where there is none."""
    return rows["clean"] if part.label == "predicted" else rows["label"], rows["target"]


def attackable(model: nn.Module) -> nn.Module:
    """What the gradients are taken through: our networks are folded, others are attacked as they are."""
    return fold(model) if isinstance(model, ResNet) else model
