"""A sweep: the same attack with one value that grows, as a curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .counts import shares_at, within
from .dataset import Dataset
from .evaluate import evaluated, resolved
from .kinds import Sweep
from .prepared import prepare
from .protocols import SWEEPS
from .results import Proportion, Result, figures, write_json
from .targets import Targets
from .text import choose

CURVE = "curve.json"


@dataclass(frozen=True)
class Curve:
    """Figures by a value that grows.

    Attributes:
        name, source, axis: of the sweep; the axis is "eps" or "steps".
        points: one a value, (value, shares by name as in ``Result.to_dict``). In worst seen, an image that a smaller
            value broke stays broken: what fits into the smaller ball fits into the larger one. So it never rises,
            whereas success and the last iterate may go either way.
        results: of the evaluations behind them.
    """

    name: str
    source: str
    axis: str
    points: Sequence[tuple[float, dict[str, Proportion]]]
    results: Sequence[Result]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": 2,
            "sweep": self.name,
            "source": self.source,
            "axis": self.axis,
            "points": [{self.axis: value, **figures(shares)} for value, shares in self.points],
            "results": [result.to_dict() for result in self.results],
        }


def sweep(
    model: nn.Module,
    data: Dataset,
    protocol: str | Sweep,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Curve:
    """``evaluate`` for every value of a sweep; ``out`` gets a folder for each and ``curve.json``.

    Args:
        protocol: a name of ``protocols.SWEEPS`` or a ``protocols.Sweep``.
        resume, fresh, targets, progress, options: of ``evaluate``.

    Raises:
        InputError, RunError: as ``evaluate``.
    """
    chosen = choose("sweep", protocol, SWEEPS) if isinstance(protocol, str) else protocol
    parts = [resolved(part, targets) for part in chosen.parts]
    ready = prepare(model, data, parts, **options)
    points: list[tuple[float, dict[str, Proportion]]] = []
    results = []
    broken: set[int] = set()
    for part in parts:
        folder = None if out is None else Path(out) / part.name
        result, rows = evaluated(
            ready, part, out=folder, resume=resume, fresh=fresh, targets=targets, progress=progress
        )
        results.append(result)
        for number, steps in enumerate(part.record or (part.steps,)):
            shares = shares_at(rows, part, number if part.record else None)
            broken |= {row.id for row in rows if within(row.first_wrong, steps)}
            shares["robust_accuracy_worst_seen"] = Proportion(len(rows) - len(broken), len(rows))
            points.append((steps if chosen.axis == "steps" else part.eps, shares))
    curve = Curve(chosen.name, chosen.source, chosen.axis, points, results)
    if out is not None:
        write_json(Path(out) / CURVE, curve.to_dict())
    return curve
