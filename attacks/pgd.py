"""Projected gradient descent (Madry et al. 2018) in the L-infinity or L2 ball, plain or with momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import check_attack, check_eot, check_images, check_labels, check_start
from .losses import Objective, cross_entropy
from .stepwise import State, run

Observe = Callable[[int, Tensor, Tensor], None]


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
    loss: Objective = cross_entropy,
    momentum: float = 0.0,
    true_labels: Tensor | None = None,
    observe: Observe | None = None,
    end_at_cycles: bool = False,
    eot: int = 1,
) -> Tensor:
    """Take signed-gradient steps on the loss, projected to the eps-ball and to [0, 1]; return the last iterate.

    Bit-identical to torchattacks' and cleverhans' PGD with the same start, and to torchattacks' MI-FGSM from the clean
    image with ``momentum=1``. Gradients are computed with respect to the image only.

    Args:
        model: pixels in [0, 1] -> logits [N, classes]; its mode and its parameters' gradients are up to the caller.
        x: clean images, [N, C, H, W] float in [0, 1].
        labels: [N] int64; the true labels, or the targets if ``targeted``.
        eps: radius of the ball in pixels of [0, 1], e.g. 16/255.
        step_size: length of a step, in the same unit.
        steps: number of gradient steps; 0 returns the start.
        targeted: move towards the targets instead of away from the labels.
        start: first iterate, inside the ball and [0, 1]; by default ``x`` itself.
        loss: one of ``attacks.losses``.
        momentum: decay factor of earlier gradients (MI-FGSM, Dong et al. 2018), 0 for plain PGD.
        true_labels: [N] int64, for a targeted loss that also needs the true labels (DLR).
        observe: called as ``observe(step, iterate, logits)`` before each step, e.g. to record the trajectory.
        end_at_cycles: end once all iterates repeat, with the same result; for deterministic models, on a CPU.
        eot: number of passes of a random model that each gradient is averaged over.

    Returns:
        Adversarial images, same shape and dtype as ``x``, within eps of ``x`` and within [0, 1]. If a gradient is not
        finite, the pixels are NaN, so that the image cannot be mistaken for robust.

    Raises:
        InputError: a value out of range, images outside [0, 1], a start outside the ball, invalid labels, or logits
            without a gradient.
    """
    attack = ProjectedGradient("linf", eps, step_size, steps, momentum)
    return _pgd(attack, model, x, labels, targeted, start, loss, true_labels, observe, end_at_cycles, eot)


def pgd_l2(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    targeted: bool = False,
    start: Tensor | None = None,
    loss: Objective = cross_entropy,
    momentum: float = 0.0,
    true_labels: Tensor | None = None,
    observe: Observe | None = None,
    end_at_cycles: bool = False,
    eot: int = 1,
) -> Tensor:
    """Take steps of L2 length ``step_size`` along the gradient, scaled back to the ball, then clipped to [0, 1].

    As in Madry's and other libraries, clipping after the projection may leave the iterate strictly inside the ball.
    Arguments and errors as in ``pgd_linf``; eps and step_size are L2 distances of pixels in [0, 1], e.g. 0.5.
    """
    attack = ProjectedGradient("l2", eps, step_size, steps, momentum)
    return _pgd(attack, model, x, labels, targeted, start, loss, true_labels, observe, end_at_cycles, eot)


def _pgd(
    attack: ProjectedGradient,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    targeted: bool,
    start: Tensor | None,
    loss: Objective,
    true_labels: Tensor | None,
    observe: Observe | None,
    end_at_cycles: bool,
    eot: int,
) -> Tensor:
    check_attack(eps=attack.eps, step_size=attack.step_size, steps=attack.steps, norm=attack.norm)
    check_eot(eot)
    check_images(x)
    check_labels(x, labels)
    if start is not None:
        check_start(x, start, attack.eps, attack.norm)
    true, targets = (labels if true_labels is None else true_labels, labels) if targeted else (labels, None)
    start = x if start is None else start
    return run(attack, model, x, true, targets, start, loss, observe, end_at_cycles=end_at_cycles, eot=eot)


@dataclass(frozen=True)
class ProjectedGradient:
    """PGD as a sequence of queries; arguments as in ``pgd_linf`` and ``pgd_l2``."""

    norm: str
    eps: float
    step_size: float
    steps: int
    momentum: float = 0.0
    needs_gradient: bool = True
    is_memoryless: bool = True  # the next state depends only on this one, so a state that repeats once repeats forever

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        return {"query": start, "velocity": torch.zeros_like(x)} if self.momentum else {"query": start}

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        query = state["query"]
        if self.momentum:
            # The paper divides by the L1 norm; torchattacks and we by the mean, a constant factor that does not matter.
            scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            gradient = gradient / scale + self.momentum * state["velocity"]
            state = {"velocity": gradient}
        return {**state, "query": STEPS[self.norm](x, query, gradient, self.eps, self.step_size)}


def linf_step(x: Tensor, x_adv: Tensor, direction: Tensor, eps: float, step_size: float) -> Tensor:
    # sign(NaN) is 0, so the image would silently stay as it is: the second term makes it NaN
    x_adv = x_adv + step_size * (direction.sign() + 0 * direction)
    return (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)


def l2_step(x: Tensor, x_adv: Tensor, direction: Tensor, eps: float, step_size: float) -> Tensor:
    delta = x_adv + step_size * direction / l2_norm(direction) - x
    return (x + delta * (eps / l2_norm(delta)).clamp_max(1)).clamp(0, 1)


def l2_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each image, [N, 1, 1, 1]; never zero, so that one can divide by it."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm.clamp_min(torch.finfo(x.dtype).tiny)


STEPS = {"linf": linf_step, "l2": l2_step}
