"""FAB (Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import InputError
from .arguments import check_attack, check_images, check_labels, distances
from .losses import logit_difference
from .projections import onto_hyperplane
from .stepwise import State, over_pixels, run


def fab(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    norm: str = "linf",
    steps: int = 100,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    start: Tensor | None = None,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Run FAB and return the nearest misclassified images found; ``x`` where none was found.

    This is the targeted version: steps go to the boundary between label and target, but any wrong class is a success.

    Args:
        model, x, labels: as in ``pgd_linf``.
        targets: [N] int64 classes other than the labels.
        norm: "linf", "l2" or "l1".
        steps: number of iterations, each with one gradient and one more query.
        alpha_max: maximum weight of the step from the clean image.
        eta: overshoot beyond the boundary.
        beta: factor by which an adversarial image is moved towards the clean one.
        start: first iterate; by default ``x``.
        observe: called as ``observe(step, query, logits)`` for every query at which a gradient is taken.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=0, step_size=0, steps=steps, norm=norm)
    check_images(x)
    check_labels(x, labels)
    attack = FastAdaptiveBoundary(norm, steps, alpha_max, eta, beta)
    start = x if start is None else start
    return run(
        attack, model, x, labels, None, start, lambda z, y, _: logit_difference(z, y, targets), observe, key="best"
    )


@dataclass(frozen=True)
class FastAdaptiveBoundary:
    """FAB as a sequence of queries; arguments as in ``fab``. Its objective is ``losses.logit_difference``."""

    norm: str
    steps: int
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    needs_gradient: bool = True

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        return {"query": start, "best": x, "best_distance": torch.full_like(x[:, 0, 0, 0], torch.inf)}

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        points, origin, normal = state["query"].flatten(1), x.flatten(1), gradient.flatten(1)
        offset = (normal * points).sum(1) - loss  # the boundary, linearized at the query: normal . z = offset
        from_point = onto_hyperplane(points, normal, offset, self.norm)
        from_origin = onto_hyperplane(origin, normal, offset, self.norm)
        near, far = (row_norms(step, self.norm).clamp_min(1e-8)[:, None] for step in (from_point, from_origin))
        alpha = (near / (near + far)).clamp(0, self.alpha_max)
        query = (1 - alpha) * (points + self.eta * from_point) + alpha * (origin + self.eta * from_origin)
        return {**state, "query": query.clamp(0, 1).view_as(x) + 0 * gradient}  # the second term keeps NaN

    def settle(self, x: Tensor, state: State, reached: Tensor) -> State:
        query, distance = state["query"], distances(x, state["query"], self.norm)
        nearer = reached & (distance < state["best_distance"])
        return {
            "query": torch.where(over_pixels(reached), x + self.beta * (query - x), query),
            "best": torch.where(over_pixels(nearer), query, state["best"]),
            "best_distance": torch.where(nearer, distance, state["best_distance"]),
        }


def find_nearest_boundary(
    model: Callable[[Tensor], Tensor], query: Tensor, labels: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the wrong class whose linearized boundary is nearest; takes a backward pass for each wrong class.

    Returns:
        Logits [N, classes], that class's logit minus the label's, [N], and the gradient of this difference.

    Raises:
        InputError: logits without a gradient.
    """
    query = query.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(query)
        if not logits.requires_grad:
            raise InputError("the model's logits carry no gradient: it detaches its input or runs under no_grad")
        count = logits.shape[1]
        nearest: tuple[Tensor, Tensor, Tensor] | None = None
        for shift in range(1, count):
            values = logit_difference(logits, labels, (labels + shift) % count)
            gradient = torch.autograd.grad(values.sum(), query, retain_graph=shift < count - 1)[0]
            apart = values.detach().abs() / (1e-12 + dual_row_norms(gradient.flatten(1), norm))
            if nearest is None:
                nearest = apart, values.detach(), gradient
                continue
            closer = apart < nearest[0]
            nearest = (
                torch.where(closer, apart, nearest[0]),
                torch.where(closer, values.detach(), nearest[1]),
                torch.where(over_pixels(closer), gradient, nearest[2]),
            )
    assert nearest is not None, "a boundary needs two classes"
    return logits.detach(), nearest[1], nearest[2]


def dual_row_norms(gradient: Tensor, norm: str) -> Tensor:
    """Return the norms of the rows in the dual of ``norm``, [N]; a value over it is the distance to a boundary."""
    return row_norms(gradient, {"linf": "l1", "l1": "linf"}.get(norm, norm))


def row_norms(step: Tensor, norm: str) -> Tensor:
    """Return the norms of the rows, [N]."""
    if norm == "linf":
        return step.abs().amax(1)
    return step.abs().sum(1) if norm == "l1" else step.square().sum(1).sqrt()
