"""APGD in the L1 ball (Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from .arguments import check_attack, check_eot, check_images, check_labels
from .losses import Objective, cross_entropy
from .projections import onto_l1_ball
from .stepwise import State, constant, over_pixels, run

#: radii of the successive balls, in units of eps, and their shares of the iterations
RADII, SHARES = (3.0, 2.0, 1.0), (0.3, 0.3, 0.4)

#: factor by which the step shrinks, and maximum factor in total
SHRINK, MAX_SHRINK = 1.5, 10.0


def apgd_l1(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    start: Tensor,
    steps: int = 100,
    targets: Tensor | None = None,
    loss: Objective = cross_entropy,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
    eot: int = 1,
) -> Tensor:
    """Run APGD in L1 in balls of 3, 2 and 1 eps, as in AutoAttack, and return its last query.

    Args:
        model, x, labels, eps, loss: as in ``pgd_linf``; ``labels`` are always the true ones.
        start: first iterate, in the ball of 3 eps.
        steps: number of iterations in all three balls together.
        targets: [N] int64 classes to move towards, with a targeted loss.
        observe: called as ``observe(step, query, logits)`` for every query except the last; queries in the first two
            balls may lie outside the ball of eps.
        eot: number of passes of a random model that each gradient, and the loss, is averaged over.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=eps, step_size=eps, steps=steps, norm="l1")
    check_images(x)
    check_labels(x, labels)
    check_eot(eot)
    return run(SparsePGD(eps, steps + len(RADII) - 1), model, x, labels, targets, start, loss, observe, eot=eot)


@dataclass(frozen=True)
class SparsePGD:
    """APGD in L1 as a sequence of queries; arguments as in ``apgd_l1``."""

    eps: float
    steps: int  # queries before the last one: each ball has one more than it has iterations
    needs_gradient: bool = True

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """Number of iterations in each ball."""
        first, second = (ceil(share * self.iterations) for share in SHARES[:-1])
        return first, second, max(self.iterations - first - second, 0)

    @property
    def iterations(self) -> int:
        """Number of iterations in all balls together."""
        return max(self.steps - len(RADII) + 1, 0)

    @cached_property
    def plan(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """For each query: radius of its ball in units of eps, 1 if a ball begins, 1 if the step size is checked."""
        radii: list[float] = []
        begins: list[float] = []
        checks: list[float] = []
        for radius, iterations in zip(RADII, self.stages, strict=True):
            window = max(int(0.04 * iterations), 1)
            radii += [radius] * (iterations + 1)
            begins += [1.0] + [0.0] * iterations
            checks += [0.0] + [float((i + 1) % window == 0) for i in range(iterations)]
        return tuple(radii), tuple(begins), tuple(checks)

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        one = torch.ones_like(x[:, 0, 0, 0])
        return {
            "query": start,
            "best": start,
            "best_gradient": torch.zeros_like(x),
            "best_loss": -torch.inf * one,
            "share": one,  # share of the coordinates that a step changes
            "support": one,  # number of coordinates that the best point had changed at the last check
            "step_size": one,
        }

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        radii, starts, looks = (constant(values, torch.float32, x.device) for values in self.plan)
        radius, begins, checks = self.eps * radii[step], starts[step] > 0, looks[step] > 0
        size = x[0].numel()
        query = state["query"]
        better = begins | (loss > state["best_loss"])
        best = torch.where(over_pixels(better), query, state["best"])
        best_gradient = torch.where(over_pixels(better), gradient, state["best_gradient"])
        best_loss = torch.where(better, loss, state["best_loss"])

        support = (best != x).flatten(1).sum(1).to(x.dtype)
        update = begins | checks
        sparser = checks & (support / state["support"].clamp_min(1) < 0.95)
        step_size = torch.where(begins | sparser, radius, state["step_size"])
        step_size = torch.where(checks & ~sparser, (step_size / SHRINK).clamp_min(radius / MAX_SHRINK), step_size)
        share = torch.where(update, support / size / 1.5, state["share"])
        here = torch.where(over_pixels(sparser), best, query)
        direction = torch.where(over_pixels(sparser), best_gradient, gradient)

        # the signs of the largest entries of the gradient, as a step of L1 length step_size
        size_of = direction.flatten(1).abs()
        smallest = ((1 - share) * size).clamp(0, size - 1).long()
        threshold = size_of.sort(dim=1).values.gather(1, smallest[:, None])
        signs = torch.where(size_of >= threshold, direction.flatten(1).sign(), 0.0)
        signs = (signs / (signs.abs().sum(1, keepdim=True) + 1e-10)).view_as(x)
        moved = here + over_pixels(step_size) * signs - x + 0 * gradient  # the last term keeps NaN

        # the next ball begins at the best point of this one
        ends = starts[step + 1] > 0
        moved = torch.where(over_pixels(ends), best - x, moved)
        return {
            "query": x + onto_l1_ball(x, moved, self.eps * radii[step + 1]),
            "best": best,
            "best_gradient": best_gradient,
            "best_loss": best_loss,
            "share": share,
            "support": torch.where(update, support, state["support"]),
            "step_size": step_size,
        }
