"""APGD as a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..attacks import targets
from ..attacks.arguments import check_attack, check_eot
from ..attacks.auto_pgd import AutoPGD
from ..attacks.auto_pgd_l1 import RADII, SparsePGD
from ..attacks.losses import LOSSES, Objective
from ..attacks.starts import in_l1_ball, on_surface
from ..utils.checks import check_name, check_whole
from ..utils.contexts import Model
from ..utils.errors import InputError
from .base import NORMS, TARGETS, StepwiseProtocol, convert_fractions, format_distance


@dataclass(frozen=True, kw_only=True)
class APGD(StepwiseProtocol):
    """Auto-PGD; the values of ``attacks.apgd``. An image leaves at its first success.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        norm: norm of the ball, "linf", "l2" or "l1"; in L1 without ``rho``.
        steps: iterations.
        loss: "cross-entropy" (APGD-CE), "margin" or "dlr".
        targets: 0, or the number of wrong classes, the likeliest on the clean image first, that are aimed at one after
            the other (APGD-T has 9). Where there are fewer wrong classes, it is as many as there are.
        targeted: whether success is one target class, instead of any wrong one; ``targets`` is then 0.
        target: of a targeted attack: "uniform" over the wrong classes, the "least-likely" one, or the one "given" to
            ``evaluate``.
        restarts: independent starts, for each target.
        rho: share of iterations that must raise the loss, or else the step size is halved.
        eot: passes of a random model that each gradient is averaged over; a deterministic one makes a single pass.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: a value out of range.
    """

    eps: float
    norm: str = "linf"
    steps: int = 100
    loss: str = "cross-entropy"
    targets: int = 0
    targeted: bool = False
    target: str = "uniform"
    restarts: int = 1
    rho: float = 0.75
    eot: int = 1
    name: str = "apgd"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=self.eps, steps=self.steps, norm=self.norm)
        check_name("loss", self.loss, LOSSES)
        check_whole(1, steps=self.steps, restarts=self.restarts)
        check_whole(0, targets=self.targets)
        check_eot(self.eot)
        check_name("target", self.target, TARGETS)
        if self.target != "uniform" and not self.targeted:
            raise InputError(f"target = {self.target!r} is for targeted attacks: set targeted = true as well")
        if self.targets and self.targeted:
            raise InputError(f"targets = {self.targets} are those of an untargeted attack: leave them out")
        if not 0 < self.rho < 1:
            raise InputError(f"rho = {self.rho}: must be between 0 and 1")

    @property
    def objective(self) -> Objective:
        """The objective that the attack ascends."""
        return LOSSES[self.loss]

    @property
    def objective_takes_targets(self) -> bool:
        """True if the objective takes target classes."""
        return self.targets > 0 or self.targeted

    @property
    def needs_targets(self) -> bool:
        """True if the targets must be passed to ``evaluate``."""
        return self.targeted and self.target == "given"

    def with_given_targets(self) -> APGD:
        """Return the same attack with targets that are passed to ``evaluate``; InputError for an untargeted one."""
        return replace(self, target="given") if self.targeted else super().with_given_targets()

    def goals(
        self, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
    ) -> Tensor:
        """Return the classes of the attack's loss, [N] int64: targets if ``targeted``, otherwise labels."""
        if not self.targeted:
            return labels
        return targets.choose_targets(self.target, model, x, labels, ids, num_classes, seed=seed, draw=draw)

    @property
    def stays_in_ball(self) -> bool:
        """True if every query lies in the ball; in L1 the first ones do not."""
        return self.norm != "l1"

    def stepwise(self, seed: int) -> AutoPGD | SparsePGD:
        """Return the attack as a sequence of queries."""
        if self.norm == "l1":
            return SparsePGD(self.eps, self.steps + len(RADII) - 1)
        return AutoPGD(self.norm, self.eps, self.steps, self.rho)

    def starts(self, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
        """Return the first iterates, like ``x`` [N, C, H, W], at the surface of the ball; in L1, in the first ball."""
        if self.norm == "l1":
            return in_l1_ball(x, ids, RADII[0] * self.eps, seed=seed, draw=draw)
        return on_surface(x, ids, self.eps, self.norm, seed=seed, draw=draw)

    def draws(self, num_classes: int) -> int:
        """Return the maximum number of runs of the attack on one image: restarts, times targets if several."""
        return self.restarts * (min(self.targets, num_classes - 1) if self.targets else 1)

    def classes(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the classes that the next draw moves away from and towards, [N] each; -1 if there is none."""
        if not self.targets:
            return rows["label"], rows["target"]
        return rows["label"], rows["ranking"].gather(1, 1 + rows["draw"][:, None] // self.restarts)[:, 0]

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        return {"attack": "apgd", "criterion": self.criterion, **asdict(self)}

    def __str__(self) -> str:
        targets = f"{self.targets} targets, " if self.targets else f"targeted ({self.target}), " * self.targeted
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        restarts += f", gradients over {self.eot} draws" if self.eot > 1 else ""
        return (
            f"APGD, {self.loss} loss, {targets}eps {format_distance(self.eps, self.norm)}, {self.steps} steps{restarts}"
        )
