"""From a protocol and a batch to adversarial images: goals and starts keyed by (seed, image id, draw), then the attack.

Training and evaluation share this path; a draw is a restart of an evaluation, or an epoch of training.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .attacks import targets
from .attacks.pgd import pgd_linf
from .models.fold import fold
from .models.resnet import ResNet
from .protocols import PGD
from .rng import START, uniform

Model = Callable[[Tensor], Tensor]


def goals(
    protocol: PGD, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
) -> Tensor:
    """What the attack's loss is taken on, [N] int64: targets of a targeted attack, otherwise the true labels."""
    if not protocol.targeted:
        return labels
    if protocol.target == "least-likely":
        return targets.least_likely(model, x, labels)
    return targets.uniform(labels, ids, num_classes, seed=seed, draw=draw)


def starts(protocol: PGD, x: Tensor, ids: Tensor, *, seed: int, draw: int = 0) -> Tensor:
    """First iterates, like ``x``: the clean images, or uniform in the ball and clipped to [0, 1]."""
    if protocol.start == "clean":
        return x
    noise = 2 * uniform(seed, START, ids.to(x.device), x.shape[1:], draw) - 1
    return (x + protocol.eps * noise).clamp(0, 1)


def perturb(
    protocol: PGD,
    model: Model,
    x: Tensor,
    goals: Tensor,
    ids: Tensor,
    *,
    seed: int,
    draw: int = 0,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Adversarial images of ``x`` [N, C, H, W] under ``protocol``; arguments as in ``attacks.pgd_linf``."""
    return pgd_linf(
        model,
        x,
        goals,
        eps=protocol.eps,
        step_size=protocol.step_size,
        steps=protocol.steps,
        targeted=protocol.targeted,
        start=starts(protocol, x, ids, seed=seed, draw=draw),
        observe=observe,
    )


def attackable(model: nn.Module) -> nn.Module:
    """What the gradients are taken through: our networks are folded, others are attacked as they are."""
    return fold(model) if isinstance(model, ResNet) else model
