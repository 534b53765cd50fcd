"""FMN (Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints").

One departure: until an image is misclassified, the radius goes a hundredth beyond the linearized boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from .arguments import check_attack, check_images, check_labels, distances
from .losses import margin
from .projections import onto_l1_ball
from .stepwise import State, constant, over_pixels, run

#: dual norms: the margin divided by this norm of its gradient is the distance to the linearized boundary
DUALS = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}

#: radius over the distance of the linearized boundary, until an image is misclassified
OVERSHOOT = 1.01


def fmn(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Run FMN and return the nearest misclassified images found, in ``norm``; ``x`` where none was found.

    Args:
        model, x, labels: as in ``pgd_linf``.
        norm: norm to minimize, "linf", "l2" or "l1".
        steps: number of queries, each with one gradient.
        step_size: L2 length of the first step; it falls to a hundredth along a cosine.
        gamma: share by which the radius first grows or shrinks; it falls to a fiftieth along a cosine.
        observe: called as ``observe(step, query, logits)`` for every query.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=0, step_size=0, steps=steps, norm=norm)
    check_images(x)
    check_labels(x, labels)
    return run(FastMinimumNorm(norm, steps, step_size, gamma), model, x, labels, None, x, margin, observe, key="best")


@dataclass(frozen=True)
class FastMinimumNorm:
    """FMN as a sequence of queries; arguments as in ``fmn``. Its objective is the margin."""

    norm: str
    steps: int
    step_size: float = 1.0
    gamma: float = 0.05
    needs_gradient: bool = True

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        farthest = distances(x, torch.where(x < 0.5, 1.0, 0.0), self.norm)
        return {"query": start, "best": x, "best_distance": farthest, "farthest": farthest, "radius": farthest}

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        query, distance = state["query"], distances(x, state["query"], self.norm)
        found = state["best_distance"] < state["farthest"]
        nearer = reached & (distance < state["best_distance"])
        best_distance = torch.where(nearer, distance, state["best_distance"])

        # the radius shrinks where the query is adversarial, and grows where it is not
        gamma, alpha = (cosine_schedule(top, low, self.steps, step) for top, low in self.schedules)
        slope = torch.linalg.vector_norm(gradient.flatten(1), ord=DUALS[self.norm], dim=1).clamp_min(1e-12)
        # the paper goes just to the linearized boundary until it is crossed, which may never happen
        beyond = OVERSHOOT * (distance + loss.abs() / slope)
        outwards = torch.where(found, state["radius"] * (1 + gamma), beyond)
        inwards = torch.minimum(state["radius"] * (1 - gamma), best_distance)
        radius = torch.minimum(torch.where(reached, inwards, outwards), state["farthest"])

        unit = gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        delta = query + over_pixels(alpha) * unit - x
        return {
            "query": project(x, delta, radius, self.norm) + 0 * gradient,  # the second term keeps NaN
            "best": torch.where(over_pixels(nearer), query, state["best"]),
            "best_distance": best_distance,
            "farthest": state["farthest"],
            "radius": radius,
        }

    @property
    def schedules(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """First and last values of gamma and of the step size."""
        return (self.gamma, self.gamma / 50), (self.step_size, self.step_size / 100)


def project(x: Tensor, delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Project ``x + delta`` to each image's radius, [N], and to [0, 1]."""
    if norm == "l1":
        return (x + onto_l1_ball(x, delta, radius, box=False)).clamp(0, 1)
    if norm == "linf":
        return (x + torch.clamp(delta, -over_pixels(radius), over_pixels(radius))).clamp(0, 1)
    length: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return (x + delta * (over_pixels(radius) / length).clamp_max(1)).clamp(0, 1)


def cosine_schedule(first: float, last: float, steps: int, step: Tensor) -> Tensor:
    """Return the values at ``step`` [N] of a schedule that falls from ``first`` to ``last`` along half a cosine."""
    values = tuple(last + (first - last) * (1 + cos(pi * i / steps)) / 2 for i in range(steps + 1))
    return constant(values, torch.float32, step.device)[step]
