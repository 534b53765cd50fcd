"""Several protocols that differ in one value, for a curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..utils.checks import check_name
from ..utils.errors import InputError
from .base import Protocol, format_distance


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Protocols that differ by one value, for a curve; see ``robust_lr.sweep``.

    Args:
        axis: the value that differs, "eps" or "steps".
        parts: in increasing order of that value.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: no parts, or parts out of order.
    """

    axis: str
    parts: tuple[Protocol, ...]
    name: str
    source: str = "user"

    def __post_init__(self) -> None:
        check_name("axis", self.axis, ("eps", "steps"))
        values = [getattr(part, self.axis) for part in self.parts]
        if not values or values != sorted(set(values)):
            raise InputError(f"{self.axis} = {values}: a sweep needs increasing values")

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        parts = [part.values() for part in self.parts]
        return {"attack": "sweep", "axis": self.axis, "parts": parts, "name": self.name, "source": self.source}

    def __str__(self) -> str:
        values = [format_distance(p.eps, p.norm) for p in self.parts]
        if self.axis == "steps":
            values = [str(steps) for p in self.parts for steps in p.record or (p.steps,)]
        return f"{self.axis} {', '.join(values)}; the last of them {self.parts[-1]}"
