"""From a protocol and a batch to adversarial images: goals and starts keyed by (seed, image id, draw), then the attack.

Training and evaluation share this path; a draw is a restart of an evaluation, or an epoch of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
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


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode and without parameter gradients; afterwards every mode and flag is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def fp32(device: torch.device) -> Iterator[None]:
    """Arithmetic in fp32, the same in every run, whatever the caller's autocast and precision settings are."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def attackable(model: nn.Module) -> nn.Module:
    """What the gradients are taken through: our networks are folded, others are attacked as they are."""
    return fold(model) if isinstance(model, ResNet) else model
