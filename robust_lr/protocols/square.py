"""The Square Attack as a protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..attacks.arguments import check_attack
from ..attacks.losses import Objective, margin
from ..attacks.square_lp import WindowSearch
from ..attacks.square_search import SquareSearch
from ..utils.checks import check_name, check_whole
from ..utils.errors import InputError
from ..utils.rng import DRAWS
from .base import NORMS, StepwiseProtocol, convert_fractions, format_distance


@dataclass(frozen=True, kw_only=True)
class Square(StepwiseProtocol):
    """Square Attack; the values of ``attacks.square``. An image leaves at its first success.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        norm: norm of the ball, "linf", "l2" or "l1".
        queries: of the model.
        p: share of the pixels in the first squares.
        restarts: independent searches.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: a value out of range.
    """

    eps: float
    norm: str = "linf"
    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    name: str = "square"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=self.eps, steps=self.queries, norm=self.norm)
        check_whole(1, queries=self.queries, restarts=self.restarts)
        if self.restarts * (self.queries + 1) >= DRAWS:
            raise InputError(f"restarts = {self.restarts} of {self.queries} queries: at most {DRAWS} are keyed in all")
        if not 0 < self.p <= 1:
            raise InputError(f"p = {self.p}: must be above 0, at most 1")

    @property
    def steps(self) -> int:
        return self.queries

    @property
    def objective(self) -> Objective:
        """The objective that the attack ascends."""
        return margin

    @property
    def follows_gradients(self) -> bool:
        """True if the attack uses gradients of the model."""
        return False

    def stepwise(self, seed: int) -> SquareSearch | WindowSearch:
        """Return the attack as a sequence of queries."""
        if self.norm != "linf":
            return WindowSearch(self.norm, self.eps, self.queries, self.p, seed)
        return SquareSearch(self.eps, self.queries, self.p, seed)

    def starts(self, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
        """Return first queries, like ``x`` [N, C, H, W]: stripes, or in L2 and L1 tiles."""
        attack = self.stepwise(seed)
        return attack.first(x, ids.to(x.device), draw)

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        return {"attack": "square", "criterion": self.criterion, **asdict(self)}

    def __str__(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"Square, eps {format_distance(self.eps, self.norm)}, {self.queries} queries, p {self.p:g}{restarts}"
