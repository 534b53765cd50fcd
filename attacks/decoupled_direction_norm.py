"""DDN (Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import check_attack, check_images, check_labels, distances
from .fast_minimum_norm import cosine_schedule
from .losses import cross_entropy
from .stepwise import State, over_pixels, run


def ddn(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    radius: float = 1.0,
    gamma: float = 0.05,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Run DDN and return the nearest misclassified images found, in L2; ``x`` where none was found.

    Args:
        model, x, labels: as in ``pgd_linf``.
        steps: number of queries, each with one gradient.
        radius: radius of the first sphere.
        gamma: share by which the radius grows or shrinks.
        observe: called as ``observe(step, query, logits)`` for every query.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=radius, step_size=0, steps=steps, norm="l2")
    check_images(x)
    check_labels(x, labels)
    attack = DecoupledDirectionNorm(steps, radius, gamma)
    return run(attack, model, x, labels, None, x, cross_entropy, observe, key="best")


@dataclass(frozen=True)
class DecoupledDirectionNorm:
    """DDN as a sequence of queries; arguments as in ``ddn``."""

    steps: int
    radius: float = 1.0
    gamma: float = 0.05
    needs_gradient: bool = True

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        farthest = distances(x, torch.where(x < 0.5, 1.0, 0.0), "l2")
        radius = torch.full_like(farthest, self.radius)
        return {"query": start, "best": x, "best_distance": farthest, "farthest": farthest, "radius": radius}

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        query, distance = state["query"], distances(x, state["query"], "l2")
        nearer = reached & (distance < state["best_distance"])
        radius = state["radius"] * torch.where(reached, 1 - self.gamma, 1 + self.gamma)
        radius = torch.minimum(radius, state["farthest"])
        unit = gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        delta = query - x + over_pixels(cosine_schedule(1.0, 0.01, self.steps, step)) * unit
        length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        return {
            "query": (x + delta * (over_pixels(radius) / length)).clamp(0, 1),
            "best": torch.where(over_pixels(nearer), query, state["best"]),
            "best_distance": torch.where(nearer, distance, state["best_distance"]),
            "farthest": state["farthest"],
            "radius": radius,
        }
