"""Projected gradient descent (Madry et al. 2018), L-infinity, targeted or untargeted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .checks import check_attack, check_images, check_labels, check_start


def pgd_linf(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    targeted: bool = False,
    start: Tensor | None = None,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Signed-gradient steps on the cross-entropy, projected to the eps-ball and to [0, 1]; returns the last iterate.

    Bit-identical to torchattacks' and cleverhans' PGD with the same start. Only the gradient by the image is computed;
    the loss is summed, not averaged, so that no image's gradient depends on the batch that it is in.

    Args:
        model: pixels in [0, 1] -> logits [N, classes]; its mode and its gradients are the caller's business.
        x: clean images, [N, C, H, W] float in [0, 1].
        labels: [N] int64; the true labels, or the targets if ``targeted``.
        eps: radius of the ball in pixels of [0, 1], e.g. 16/255.
        step_size: of one step, same unit.
        steps: number of gradient steps; 0 returns the start.
        targeted: descend the loss of the targets instead of ascending that of the labels.
        start: first iterate, inside the ball and [0, 1]; by default ``x`` itself.
        observe: called as ``observe(step, iterate, logits)`` before each step, e.g. to record the trajectory.

    Returns:
        Adversarial images, same shape and dtype as ``x``, within eps of ``x`` and within [0, 1]. Where a gradient is
        not finite the pixels are NaN, so that it cannot pass for robustness.

    Raises:
        InputError: a value out of range, images outside [0, 1], a start outside the ball, labels of the wrong kind,
            or logits without a gradient.
    """
    check_attack(eps=eps, step_size=step_size, steps=steps)
    check_images(x)
    check_labels(x, labels)
    if start is not None:
        check_start(x, start, eps)
    direction = -1.0 if targeted else 1.0

    def project(x_adv: Tensor) -> Tensor:
        return (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)

    x_adv = x.detach() if start is None else start.detach()
    for step in range(steps):
        x_adv = x_adv.requires_grad_()
        with torch.enable_grad():
            logits = model(x_adv)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            if not loss.requires_grad:
                raise InputError("the model's logits carry no gradient: it detaches its input or runs under no_grad")
            (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach()
        if observe is not None:
            observe(step, x_adv, logits.detach())
        # sign(NaN) is 0, and the image would just stand still: the second term makes it NaN
        x_adv = project(x_adv + direction * step_size * (gradient.sign() + 0 * gradient))
    return x_adv
