"""Auto-PGD (Croce and Hein 2020): PGD with momentum, whose step size is halved when the loss stops rising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .arguments import check_attack, check_eot, check_images, check_labels, check_start
from .losses import Objective, cross_entropy
from .stepwise import State, constant, over_pixels, run


def apgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    start: Tensor,
    norm: str = "linf",
    steps: int = 100,
    targets: Tensor | None = None,
    loss: Objective = cross_entropy,
    rho: float = 0.75,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
    eot: int = 1,
) -> Tensor:
    """Run APGD (Algorithm 1) and return its last query; its queries equal those of the official code bit for bit.

    Args:
        model, x, labels, eps, start, loss: as in ``pgd_linf``; ``labels`` are always the true ones.
        norm: norm of the ball, "linf" or "l2".
        steps: number of iterations, each with one gradient.
        targets: [N] int64 classes to move towards, with a targeted loss.
        rho: share of iterations that must raise the loss, or else the step size is halved.
        observe: called as ``observe(step, query, logits)`` for every query except the last. The caller decides what
            counts as success; the official code takes the last misclassified query.
        eot: number of passes of a random model that each gradient, and the loss, is averaged over.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=eps, step_size=eps, steps=steps, norm=norm)
    check_images(x)
    check_labels(x, labels)
    check_start(x, start, eps, norm)
    check_eot(eot)
    return run(AutoPGD(norm, eps, steps, rho), model, x, labels, targets, start, loss, observe, eot=eot)


@dataclass(frozen=True)
class AutoPGD:
    """APGD as a sequence of queries; arguments as in ``apgd``."""

    norm: str
    eps: float
    steps: int
    rho: float = 0.75
    needs_gradient: bool = True

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        one = torch.ones_like(x[:, :1, :1, :1])
        zero = torch.zeros_like(one[:, 0, 0, 0])
        return {
            "query": start,
            "base": start,
            "best": start,
            "best_gradient": torch.zeros_like(x),
            "best_loss": zero - torch.inf,
            "checked_loss": zero,
            "previous_loss": zero,  # as in the official code, which reads index -1 of an array of zeros
            "rises": torch.zeros_like(zero, dtype=torch.int64),
            "halved": torch.ones_like(zero, dtype=torch.bool),
            "step_size": 2 * self.eps * one,
        }

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        begins = step == 0
        better = loss > state["best_loss"]
        best = torch.where(over_pixels(better), state["query"], state["best"])
        best_gradient = torch.where(over_pixels(better), gradient, state["best_gradient"])
        best_loss = torch.where(better, loss, state["best_loss"])
        checked_loss = torch.where(begins, loss, state["checked_loss"])
        rises = state["rises"] + (~begins & (loss > state["previous_loss"]))

        # the checkpoints' conditions 1 and 2, then a new start from the best point
        enough = constant(self.rise_thresholds, torch.float32, x.device)[step]
        checks = enough >= 0
        halve = checks & ((rises <= enough) | (~state["halved"] & (checked_loss >= best_loss)))
        step_size = torch.where(over_pixels(halve), state["step_size"] / 2, state["step_size"])
        here = torch.where(over_pixels(halve), best, state["query"])
        gradient = torch.where(over_pixels(halve), best_gradient, gradient)
        momentum = torch.where(over_pixels(begins), 1.0, 0.75)
        return {
            "query": MOVES[self.norm](x, here, gradient, here - state["base"], momentum, step_size, self.eps),
            "base": here,
            "best": best,
            "best_gradient": best_gradient,
            "best_loss": best_loss,
            "checked_loss": torch.where(checks, best_loss, checked_loss),
            "previous_loss": torch.where(begins, state["previous_loss"], loss),
            "rises": torch.where(checks, 0, rises),
            "halved": torch.where(checks, halve, state["halved"]),
            "step_size": step_size,
        }

    @cached_property
    def rise_thresholds(self) -> tuple[float, ...]:
        """For each query, the largest number of rises since the last checkpoint that is too few; -1 elsewhere."""
        window, least, shrink = (max(int(share * self.steps), 1) for share in (0.22, 0.06, 0.03))
        enough, at = [-1.0] * (self.steps + 1), window
        while at <= self.steps:
            enough[at] = window * self.rho
            window = max(window - shrink, least)
            at += window
        return tuple(enough)


def linf_move(
    x: Tensor, here: Tensor, gradient: Tensor, drift: Tensor, momentum: Tensor, step_size: Tensor, eps: float
) -> Tensor:
    def project(x_adv: Tensor) -> Tensor:
        return torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)

    there = project(here + step_size * (gradient.sign() + 0 * gradient))  # the second term keeps NaN
    return project(here + (there - here) * momentum + drift * (1 - momentum))


def l2_move(
    x: Tensor, here: Tensor, gradient: Tensor, drift: Tensor, momentum: Tensor, step_size: Tensor, eps: float
) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return (x**2).sum(dim=(1, 2, 3), keepdim=True).sqrt()

    there = here + step_size * gradient / (norm(gradient) + 1e-12)
    there = (x + (there - x) / (norm(there - x) + 1e-12) * norm(there - x).clamp_max(eps)).clamp(0, 1)
    there = here + (there - here) * momentum + drift * (1 - momentum)
    return (x + (there - x) / (norm(there - x) + 1e-12) * (norm(there - x) + 1e-12).clamp_max(eps)).clamp(0, 1)


MOVES = {"linf": linf_move, "l2": l2_move}
