"""Robust accuracy as a curve over steps or eps: build the curve of a sweep, read it, and merge the sweep's shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..protocols.base import Protocol
from ..protocols.files import from_values
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.statistics import Proportion
from .ledger import Row, first_difference
from .merge import check_out, join
from .result import Result, figures
from .summary import shares_at, within

CURVE = "curve.json"


@dataclass(frozen=True)
class Curve:
    """Accuracies at increasing values of eps or of the number of steps.

    Attributes:
        name, source: name of the sweep, and where its values come from.
        axis: "eps" or "steps".
        points: for each value, (value, proportions by name as in ``Result.to_dict``). The worst seen accuracy never
            rises: an image broken at a smaller value stays broken, because the larger ball contains the perturbation.
            Success and accuracy at the last iterate can rise or fall.
        results: results of the evaluations behind the points.
    """

    name: str
    source: str
    axis: str
    points: Sequence[tuple[float, dict[str, Proportion]]]
    results: Sequence[Result]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": 2,
            "sweep": self.name,
            "source": self.source,
            "axis": self.axis,
            "points": [{self.axis: value, **figures(shares)} for value, shares in self.points],
            "results": [result.to_dict() for result in self.results],
        }


def curve_of(result: Result) -> Curve:
    """Return the curve over the steps of one evaluation; without points if the protocol records no steps."""
    return Curve(result.protocol["name"], result.protocol["source"], "steps", result.curve, [result])


def build_curve(name: str, source: str, axis: str, found: Sequence[tuple[Protocol, Result, Sequence[Row]]]) -> Curve:
    """Build the curve of a sweep from its parts, each with its protocol, result and rows."""
    points: list[tuple[float, dict[str, Proportion]]] = []
    broken: set[int] = set()
    for part, _, rows in found:
        for number, steps in enumerate(part.record or (part.steps,)):
            shares = shares_at(rows, part, number if part.record else None)
            broken |= {row.id for row in rows if within(row.first_wrong, steps)}
            shares["robust_accuracy_worst_seen"] = Proportion(len(rows) - len(broken), len(rows))
            points.append((steps if axis == "steps" else part.eps, shares))
    return Curve(name, source, axis, points, [result for _, result, _ in found])


def merge_sweep(folders: Sequence[str | Path], out: str | Path, *, fresh: bool = False) -> Curve:
    """Merge the shards of a sweep, as ``merge`` does for an evaluation; ``out`` is then as ``sweep`` would write it.

    Raises:
        InputError: a folder has no finished sweep or another sweep, or ``merge`` would raise one for a part.
    """
    records = [read_curve(Path(folder)) for folder in folders]
    about = [
        {"sweep": r["sweep"], "axis": r["axis"], "parts": [part["protocol"]["name"] for part in r["results"]]}
        for r in records
    ]
    if not about:
        raise InputError("nothing to merge: give the folders of all shards")
    for folder, other in zip(folders, about, strict=True):
        if (difference := first_difference(about[0], other)) is not None:
            key, one, theirs = difference
            raise InputError(
                f"{folders[0]} and {folder} belong to different sweeps: {key} is {one!r} in the first, {theirs!r} in "
                "the second"
            )
    wholes = {}
    for name in about[0]["parts"]:
        check_out(Path(out) / name, fresh)
        wholes[name] = join([Path(folder) / name for folder in folders])
    for name, whole in wholes.items():
        whole.write(Path(out) / name)
    first = records[0]
    found = [(from_values(whole.result.protocol), whole.result, whole.rows) for whole in wholes.values()]
    curve = build_curve(first["sweep"], first["source"], first["axis"], found)
    write_json(Path(out) / CURVE, curve.to_dict())
    return curve


def read_curve(folder: Path) -> dict[str, Any]:
    """Read the curve of a finished sweep as JSON; InputError if there is none or it is damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / CURVE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no finished sweep ({CURVE}): run the same command again") from None
    except ValueError as error:
        raise InputError(f"{folder / CURVE} is damaged ({error}): run the same command again") from None
    return record
