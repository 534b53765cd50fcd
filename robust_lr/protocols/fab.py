"""FAB as a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks.arguments import check_attack
from ..attacks.fast_adaptive_boundary import FastAdaptiveBoundary, find_nearest_boundary
from ..attacks.losses import Objective, logit_difference
from ..attacks.starts import on_surface
from ..utils.checks import check_name, check_whole
from ..utils.contexts import Model
from ..utils.errors import InputError
from .base import NORMS, StepwiseProtocol, convert_fractions, format_distance


@dataclass(frozen=True, kw_only=True)
class FAB(StepwiseProtocol):
    """FAB, targeted or not; the values of ``attacks.fab``. An image leaves at its first success within eps.

    Args:
        eps: radius of the ball in which a success counts, in pixels of [0, 1].
        norm: norm of the ball, "linf", "l2" or "l1".
        steps: iterations, each with one gradient and one more query.
        targets: number of wrong classes, the likeliest on the clean image first, that are aimed at one after the
            other. Where there are fewer wrong classes, it is as many as there are. 0 is the untargeted attack, which
            steps to the nearest boundary and takes a gradient of every wrong class for that.
        restarts: starts for each target: the clean image, then at random.
        alpha_max: most weight of the step from the clean image.
        eta: overshoot beyond the boundary.
        beta: factor by which an adversarial image is drawn towards the clean one.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: a value out of range.
    """

    eps: float
    norm: str = "linf"
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    name: str = "fab-t"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=self.eps, steps=self.steps, norm=self.norm)
        check_whole(1, steps=self.steps, restarts=self.restarts)
        check_whole(0, targets=self.targets)
        for key, low, value, high in (
            ("alpha_max", 0, self.alpha_max, 1),
            ("eta", 1, self.eta, 2),
            ("beta", 0, self.beta, 1),
        ):
            if not low <= value <= high:
                raise InputError(f"{key} = {value}: must be between {low} and {high}")

    @property
    def stays_in_ball(self) -> bool:
        """True if every query lies in the ball; otherwise only queries inside it count."""
        return False

    @property
    def objective(self) -> Objective:
        """Function that vanishes at the boundary that the attack steps to."""
        return logit_difference

    @property
    def objective_takes_targets(self) -> bool:
        """True if the objective takes target classes."""
        return self.targets > 0

    def evaluate_query(
        self,
        model: Model,
        query: Tensor,
        rows: Mapping[str, Tensor],
        targets: Tensor | None,
        needs_gradient: bool,
        *,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, and the function that vanishes at the target's or the nearest boundary with its gradient."""
        if not self.targets:
            return find_nearest_boundary(model, query, rows["away"], self.norm)
        return super().evaluate_query(model, query, rows, targets, needs_gradient, seed=seed)

    def passes_per_query(self, num_classes: int) -> tuple[int, int]:
        """Return the numbers of forward and backward passes that one query takes."""
        return 1, 1 if self.targets else num_classes - 1

    def stepwise(self, seed: int) -> FastAdaptiveBoundary:
        """Return the attack as a sequence of queries."""
        return FastAdaptiveBoundary(self.norm, self.steps, self.alpha_max, self.eta, self.beta)

    def starts(self, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
        """Return first iterates: the images, or for further restarts points at half of eps."""
        if self.restarts == 1:
            return x
        restart = torch.as_tensor(draw, device=x.device) % self.restarts
        away = on_surface(x, ids, 0.5 * self.eps, self.norm, seed=seed, draw=draw)
        return torch.where((restart > 0).view(-1, 1, 1, 1), away, x)

    def draws(self, num_classes: int) -> int:
        """Return the maximum number of runs of the attack on one image: restarts times targets."""
        return self.restarts * (min(self.targets, num_classes - 1) if self.targets else 1)

    def classes(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the classes that the next draw moves away from and towards, [N] each."""
        if not self.targets:
            return rows["label"], rows["target"]
        return rows["label"], rows["ranking"].gather(1, 1 + rows["draw"][:, None] // self.restarts)[:, 0]

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        return {"attack": "fab", "criterion": self.criterion, **asdict(self)}

    def __str__(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        kind = f"FAB-T, {self.targets} targets" if self.targets else "FAB"
        return f"{kind}, eps {format_distance(self.eps, self.norm)}, {self.steps} steps{restarts}"
