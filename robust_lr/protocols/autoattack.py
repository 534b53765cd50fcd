"""Protocols of attacks that end at their first success: parameter-free ones, those of a library, and cascades."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from ..attacks.arguments import check_attack
from ..attacks.losses import LOSSES
from ..utils.checks import check_name, check_whole
from ..utils.errors import InputError
from ..utils.rng import DRAWS
from .base import NORMS, Standing, length
from .pgd import PGD
from .torchattacks import Library


@dataclass(frozen=True, kw_only=True)
class APGD(Standing):
    """Auto-PGD; the values of ``attacks.apgd``. An image leaves at its first success.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        norm: of the ball, "linf" or "l2".
        steps: iterations.
        loss: "cross-entropy" (APGD-CE), "margin" or "dlr".
        targets: 0, or the number of wrong classes, the likeliest on the clean image first, that are aimed at one after
            the other (APGD-T has 9). Where there are fewer wrong classes, it is as many as there are.
        restarts: independent starts, for each target.
        rho: share of iterations that must raise the loss, or else the step size is halved.
        name, source: for reports, and where the values come from.

    Raises:
        InputError: a value out of range.
    """

    by_gradients: ClassVar[bool] = True

    eps: float
    norm: str = "linf"
    steps: int = 100
    loss: str = "cross-entropy"
    targets: int = 0
    restarts: int = 1
    rho: float = 0.75
    name: str = "apgd"
    source: str = "user"

    def __post_init__(self) -> None:
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=self.eps, steps=self.steps, norm=self.norm)
        check_name("loss", self.loss, LOSSES)
        check_whole(1, steps=self.steps, restarts=self.restarts)
        check_whole(0, targets=self.targets)
        if not 0 < self.rho < 1:
            raise InputError(f"rho = {self.rho}: must be between 0 and 1")

    @property
    def aimed(self) -> bool:
        """Whether the loss takes a target."""
        return self.targets > 0

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and its source."""
        return {"attack": "apgd", "criterion": self.criterion, **asdict(self)}

    def __str__(self) -> str:
        targets = f"{self.targets} targets, " if self.targets else ""
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"APGD, {self.loss} loss, {targets}eps {length(self.eps, self.norm)}, {self.steps} steps{restarts}"


@dataclass(frozen=True, kw_only=True)
class Square(Standing):
    """Square Attack in L-infinity; the values of ``attacks.square``. An image leaves at its first success.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        queries: of the model.
        p: share of the pixels in the first squares.
        restarts: independent searches.
        name, source: for reports, and where the values come from.

    Raises:
        InputError: a value out of range.
    """

    norm: ClassVar[str] = "linf"
    aimed: ClassVar[bool] = False
    by_gradients: ClassVar[bool] = False

    eps: float
    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    name: str = "square"
    source: str = "user"

    def __post_init__(self) -> None:
        check_attack(eps=self.eps, step_size=self.eps, steps=self.queries)
        check_whole(1, queries=self.queries, restarts=self.restarts)
        if self.restarts * (self.queries + 1) >= DRAWS:
            raise InputError(f"restarts = {self.restarts} of {self.queries} queries: at most {DRAWS} are keyed in all")
        if not 0 < self.p <= 1:
            raise InputError(f"p = {self.p}: must be above 0, at most 1")

    @property
    def steps(self) -> int:
        return self.queries

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and its source."""
        return {"attack": "square", "norm": self.norm, "criterion": self.criterion, **asdict(self)}

    def __str__(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"Square, eps {length(self.eps, self.norm)}, {self.queries} queries, p {self.p:g}{restarts}"


@dataclass(frozen=True, kw_only=True)
class Cascade(Standing):
    """Attacks one after the other, each on the images that withstood those before.

    Args:
        parts: untargeted attacks in one ball.
        first: only so many images, those with the smallest ids; 0 for all.
        name, source: for reports, and where the values come from.

    Raises:
        InputError: no parts, one that does not end at its first success, parts of different balls or of one name.
    """

    parts: tuple[Part, ...]
    first: int = 0
    name: str = "cascade"
    source: str = "user"

    def __post_init__(self) -> None:
        check_whole(0, first=self.first)
        names = [part.name for part in self.parts]
        if not self.parts or len(set(names)) < len(names):
            raise InputError(f"parts = {names}: a cascade needs at least one part, each with a name of its own")
        for part in self.parts:
            if part.criterion != "worst" or part.targeted:
                raise InputError(f"part {part.name!r}: a cascade takes untargeted attacks with criterion = 'worst'")
            if (part.eps, part.norm) != (self.eps, self.norm):
                raise InputError(f"part {part.name!r}: eps and norm must be those of the first part")

    @property
    def eps(self) -> float:
        return self.parts[0].eps

    @property
    def norm(self) -> str:
        return self.parts[0].norm

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def by_gradients(self) -> bool:
        """Whether any of them follows gradients of the model."""
        return any(part.by_gradients for part in self.parts)

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and its source."""
        return {
            "attack": "cascade",
            "eps": self.eps,
            "norm": self.norm,
            "criterion": self.criterion,
            "parts": [part.values() for part in self.parts],
            "first": self.first,
            "name": self.name,
            "source": self.source,
        }

    def __str__(self) -> str:
        first = f"; the first {self.first} ids" if self.first else ""
        return f"{', then '.join(part.name for part in self.parts)}; eps {length(self.eps, self.norm)}{first}"

    def at(self, eps: float) -> Cascade:
        """The same attacks in another ball."""

        def moved(part: Part) -> Part:
            if isinstance(part, Library) and "eps" in part.options:
                return replace(part, eps=eps, options={**part.options, "eps": eps})
            return replace(part, eps=eps)

        return replace(self, parts=tuple(map(moved, self.parts)))


Stepped = PGD | APGD | Square
"""Attacks that run as sequences of queries."""

Part = Stepped | Library
"""An attack by itself, or as a part of a cascade."""

Protocol = Part | Cascade
"""What ``evaluate`` takes."""
