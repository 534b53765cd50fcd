"""Minimum-norm attacks as protocols: one run gives robust accuracy at every eps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..attacks.arguments import check_attack
from ..attacks.decoupled_direction_norm import DecoupledDirectionNorm
from ..attacks.fast_minimum_norm import FastMinimumNorm
from ..attacks.losses import Objective, cross_entropy, margin
from ..utils.checks import check_name, check_whole
from ..utils.errors import InputError
from .base import NORMS, StepwiseProtocol, convert_fractions, format_distance


@dataclass(frozen=True, kw_only=True)
class MinimalNorm(StepwiseProtocol):
    """An untargeted minimum-norm attack that starts from the clean image.

    The distance in each row is that of the nearest adversarial image. An image is robust at ``eps`` if none was found
    within that radius; results for other radii follow from the same run.

    Args:
        eps: radius for the headline figure, in pixels of [0, 1].
        steps: queries, each with one gradient.
        gamma: share by which the radius grows or shrinks.
        source: origin of the values.

    Raises:
        InputError: a value out of range.
    """

    restarts: ClassVar[int] = 1
    kind: ClassVar[str]

    eps: float
    steps: int = 100
    gamma: float = 0.05
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=0, steps=self.steps, norm=self.norm)
        check_whole(1, steps=self.steps)
        if not 0 < self.gamma < 1:
            raise InputError(f"gamma = {self.gamma}: must be between 0 and 1")

    @property
    def stays_in_ball(self) -> bool:
        """True if every query lies in the ball; otherwise only queries inside it count."""
        return False

    @property
    def finds_distances(self) -> bool:
        """True if the attack looks for each image's smallest perturbation."""
        return True

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        values = {"attack": self.kind, "criterion": self.criterion, "norm": self.norm, **asdict(self)}
        return {**values, "name": values.pop("name"), "source": values.pop("source")}

    def __str__(self) -> str:
        return (
            f"{self.kind.upper()}, smallest {self.norm} perturbation, {self.steps} steps; robust beyond "
            + format_distance(self.eps, self.norm)
        )


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalNorm):
    """FMN; the values of ``attacks.fmn``, and those of ``MinimalNorm``.

    Args:
        norm: to minimize, "linf", "l2" or "l1".
        step_size: L2 length of the first step.
        name: for reports.
    """

    kind: ClassVar[str] = "fmn"

    norm: str = "linf"
    step_size: float = 1.0
    name: str = "fmn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size < float("inf"):
            raise InputError(f"step_size = {self.step_size}: must be above 0")

    @property
    def objective(self) -> Objective:
        """The objective that the attack ascends."""
        return margin

    def stepwise(self, seed: int) -> FastMinimumNorm:
        """Return the attack as a sequence of queries."""
        return FastMinimumNorm(self.norm, self.steps, self.step_size, self.gamma)


@dataclass(frozen=True, kw_only=True)
class DDN(MinimalNorm):
    """DDN, in L2; the values of ``attacks.ddn``, and those of ``MinimalNorm``.

    Args:
        radius: of the first sphere.
        name: for reports.
    """

    kind: ClassVar[str] = "ddn"
    norm: ClassVar[str] = "l2"

    radius: float = 1.0
    name: str = "ddn"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack(eps=self.radius, step_size=0, steps=1, norm="l2")

    @property
    def objective(self) -> Objective:
        """The objective that the attack ascends."""
        return cross_entropy

    def stepwise(self, seed: int) -> DecoupledDirectionNorm:
        """Return the attack as a sequence of queries."""
        return DecoupledDirectionNorm(self.steps, self.radius, self.gamma)
