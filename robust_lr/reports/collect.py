"""Find finished evaluations and sweeps in folders, and check that their results agree with their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..results.compare import FIGURES
from ..results.curve import CURVE, read_curve
from ..results.stored import LEDGER, Evaluation, read_evaluation, read_ledger
from ..results.summary import shares_at
from ..utils.errors import InputError
from ..utils.statistics import Proportion

_SHARD = re.compile(r"shard-\d+-of-\d+")

#: JSON key of a result -> name of the figure counted from the rows
_CHECKED = {
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "robust_accuracy_worst_seen": "worst-seen",
    "attack_success": "success",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One finished evaluation.

    Attributes:
        number: index of the evaluation in the report.
        root: the given folder in which it was found.
        sweep: folder of the sweep that it is part of; None if it is not part of a sweep.
        shares: the proportions "clean", "robust", "worst-seen" and "success", counted from the rows.
    """

    number: int
    root: Path
    evaluation: Evaluation
    sweep: Path | None
    shares: Mapping[str, Proportion]

    @property
    def folder(self) -> Path:
        return self.evaluation.folder

    @property
    def record(self) -> dict[str, Any]:
        return self.evaluation.record

    @property
    def model(self) -> str:
        return str(self.record["model"])

    @property
    def protocol(self) -> dict[str, Any]:
        return self.evaluation.protocol

    @property
    def seed(self) -> int:
        return int(self.record["seed"])


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Everything found at or below the given folders.

    Attributes:
        evaluations: finished evaluations, in the order of the given folders, then by path.
        curves: JSON of each sweep's curve, by folder.
        unfinished: (folder, finished images, all images) of unfinished evaluations.
    """

    evaluations: tuple[Found, ...]
    curves: Mapping[Path, Mapping[str, Any]]
    unfinished: tuple[tuple[Path, int, int], ...]


def collect(runs: Sequence[str | Path]) -> Collection:
    """Read every evaluation at or below ``runs``, without changing anything.

    Raises:
        InputError: a folder holds no finished evaluation, or the result of an evaluation differs from its rows.
    """
    folders: dict[Path, tuple[Path, Path | None]] = {}
    curves: dict[Path, Mapping[str, Any]] = {}
    for run in map(Path, runs):
        below = sorted({file.parent for file in evaluations_below(run)})
        if not below:
            read_ledger(run)  # raises an error that says what is missing
        sweeps = sorted({file.parent for file in run.rglob(CURVE) if not in_shard(file.parent, run)})
        curves |= {sweep: read_curve(sweep) for sweep in sweeps}
        for folder in below:
            folders.setdefault(folder, (run, next((sweep for sweep in sweeps if folder.parent == sweep), None)))
    found: list[Found] = []
    unfinished = []
    for folder, (root, sweep) in folders.items():
        done, total = progress(folder)
        if done < total:
            unfinished.append((folder, done, total))
            continue
        evaluation = read_evaluation(folder)
        shares = count_figures(evaluation)
        check_figures(evaluation, shares)
        found.append(Found(number=len(found), root=root, evaluation=evaluation, sweep=sweep, shares=shares))
    if not found:
        folder, done, total = unfinished[0]
        raise InputError(f"{folder} is not finished: {done} of {total} images; run the same command again")
    return Collection(evaluations=tuple(found), curves=curves, unfinished=tuple(unfinished))


def evaluations_below(run: Path) -> Iterator[Path]:
    """Yield the ledgers at or below ``run``, except those of shards that have been merged."""
    for file in run.rglob(LEDGER):
        whole = in_shard(file.parent, run)
        if whole is None or not any(whole.rglob(LEDGER)) or only_shards(whole):
            yield file


def in_shard(folder: Path, run: Path) -> Path | None:
    """Return the folder above the shard that ``folder`` belongs to, within ``run``; None outside shards."""
    for place in (folder, *folder.parents):
        if place == run:
            return None
        if _SHARD.fullmatch(place.name):
            return place.parent
    return None


def only_shards(whole: Path) -> bool:
    """Return True if ``whole`` holds only shards that have not been merged."""
    return not any(in_shard(file.parent, whole) is None for file in whole.rglob(LEDGER))


def progress(folder: Path) -> tuple[int, int]:
    """Return the number of finished images and of all images."""
    configuration, rows = read_ledger(folder)
    return len(rows), int(configuration["images"])


def count_figures(evaluation: Evaluation) -> dict[str, Proportion]:
    """Return the proportions of an evaluation, counted from its rows."""
    rows = evaluation.rows
    shares = {name: Proportion(sum(map(right, rows)), len(rows)) for name, right in FIGURES.items()}
    view: Any = protocol_view(evaluation.protocol)
    return {**shares, "success": shares_at(rows, view)["attack_success"]}


def protocol_view(values: Mapping[str, Any]) -> SimpleNamespace:
    """Return an object with a protocol's values as attributes, which works for any kind of attack."""
    defaults = {"criterion": "worst", "targeted": False, "record": (), "steps": 0}
    return SimpleNamespace(**{**defaults, **values})


def check_figures(evaluation: Evaluation, shares: Mapping[str, Proportion]) -> None:
    """Raise an InputError unless the result agrees with the proportions counted from the rows."""
    for key, name in _CHECKED.items():
        said, value = evaluation.record.get(key), shares[name].value
        if said != value:
            raise InputError(
                f"{evaluation.folder}: result.json says {key} = {said}, but its rows give {value}: a file was changed; "
                "run the same command again, or merge the shards again"
            )
