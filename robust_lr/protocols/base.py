"""What every protocol has: norms and the values that are printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What holds for every attack that ends at its first success: untargeted, from keyed starts, worst iterate seen."""

    criterion: ClassVar[str] = "worst"
    targeted: ClassVar[bool] = False
    label: ClassVar[str] = "true"
    start: ClassVar[str] = "uniform"
    record: ClassVar[tuple[int, ...]] = ()


NORMS = ("linf", "l2")


def length(value: float, norm: str) -> str:
    """A distance as people write it: 0.0627... -> "16/255" in L-infinity, "0.5 (L2)" in L2."""
    return f"{value * 255:.4g}/255" if norm == "linf" else f"{value:.4g} (L2)"
