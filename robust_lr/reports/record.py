"""Build the data behind a report: group evaluations by images, protocol and seed, and compare pairs within a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..protocols.base import format_distance
from ..protocols.files import from_values
from ..results.compare import FIGURES, Pair, check_comparable, compare_pairs, find_misled
from ..utils.errors import InputError
from .collect import Collection, Found, collect


@dataclass(frozen=True, kw_only=True)
class Group:
    """Evaluations of different models under the same attack on the same images, with the same seed and targets.

    Attributes:
        data: label of the images.
        protocol: the protocol's values.
        seed: seed of starts and targets.
        members: evaluations by the label of their model.
        pairs: the comparison of every pair of members in every figure.
        apart: the reason why other evaluations with the same protocol name are in another group; None without any.
    """

    data: str
    protocol: Mapping[str, Any]
    seed: int
    members: Mapping[str, Found]
    pairs: tuple[Pair, ...]
    apart: str | None

    @property
    def name(self) -> str:
        return str(self.protocol["name"])

    @property
    def words(self) -> str:
        return describe(self.protocol)

    @property
    def n(self) -> int:
        return len(next(iter(self.members.values())).evaluation.rows)

    def of(self, figure: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.figure == figure]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The data behind every format of a report.

    Attributes:
        collection: all evaluations.
        groups: groups of evaluations that are not part of a sweep, in the order in which they were found.
        sweeps: evaluations of each sweep, by the folder of the sweep.
        labels: label of each evaluation's model, by the number of the evaluation.
    """

    title: str
    collection: Collection
    groups: tuple[Group, ...]
    sweeps: Mapping[Path, tuple[Found, ...]]
    labels: Mapping[int, str]

    @property
    def evaluations(self) -> tuple[Found, ...]:
        return self.collection.evaluations

    def data_label(self, found: Found) -> str:
        """Return the name of the data set, with the number of images or part of their hash if two sets share it."""
        name, images = str(found.record["data"]), str(found.record["images_sha256"])
        sizes: dict[str, int] = {}
        for other in self.evaluations:
            if other.record["data"] == name:
                digest = str(other.record["images_sha256"])
                sizes[digest] = max(sizes.get(digest, 0), len(other.evaluation.rows))
        if len(sizes) == 1:
            return name
        unique = len(set(sizes.values())) == len(sizes)
        return f"{name} ({sizes[images]:,} images)" if unique else f"{name} ({images[:8]})"


def build(runs: Sequence[str | Path], *, title: str = "Robustness report") -> Report:
    """Build the data behind a report, from nothing but the ledgers and results in ``runs``.

    Raises:
        InputError: as in ``collect``.
    """
    collection = collect(runs)
    labels = model_labels(collection.evaluations)
    alone = [found for found in collection.evaluations if found.sweep is None]
    report = Report(title=title, collection=collection, groups=(), sweeps=sweeps(collection), labels=labels)
    groups = tuple(group for bucket in buckets(alone) for group in split_into_groups(bucket, report))
    return Report(title=title, collection=collection, groups=groups, sweeps=report.sweeps, labels=labels)


def model_labels(evaluations: Sequence[Found]) -> dict[int, str]:
    """Return the label of each evaluation's model: its name, and the folder if two evaluations would be alike."""

    def place(found: Found) -> tuple[Any, ...]:
        record = found.record
        return found.model, record["images_sha256"], found.protocol["name"], found.seed, found.protocol.get("eps")

    times = Counter(map(place, evaluations))
    return {
        found.number: found.model if times[place(found)] == 1 else f"{found.model} ({found.folder})"
        for found in evaluations
    }


def sweeps(collection: Collection) -> dict[Path, tuple[Found, ...]]:
    return {
        folder: tuple(found for found in collection.evaluations if found.sweep == folder)
        for folder in collection.curves
    }


def buckets(evaluations: Sequence[Found]) -> list[list[Found]]:
    """Group evaluations that have the same images, protocol name and seed."""
    found: dict[tuple[Any, ...], list[Found]] = {}
    for each in evaluations:
        place = each.record["images_sha256"], each.protocol["name"], each.seed, each.record.get("shard")
        found.setdefault(place, []).append(each)
    return list(found.values())


def split_into_groups(bucket: Sequence[Found], report: Report) -> list[Group]:
    """Split evaluations into groups whose members can be compared."""
    parts: list[list[Found]] = []
    apart = None
    for found in bucket:
        for part in parts:
            try:
                check_comparable(part[0].evaluation, found.evaluation)
            except InputError as error:
                apart = str(error)
                continue
            part.append(found)
            break
        else:
            parts.append([found])
    return [group(part, report, apart if len(parts) > 1 else None) for part in parts]


def group(members: Sequence[Found], report: Report, apart: str | None) -> Group:
    named = {report.labels[found.number]: found for found in members}
    evaluations = {name: found.evaluation for name, found in named.items()}
    return Group(
        data=report.data_label(members[0]),
        protocol=members[0].protocol,
        seed=members[0].seed,
        members=named,
        pairs=tuple(
            pair
            for figure in FIGURES
            for pair in compare_pairs(
                evaluations, figure, withheld=() if figure == "clean" else find_misled(evaluations)
            )
        )
        if len(named) > 1
        else (),
        apart=apart,
    )


def describe(protocol: Mapping[str, Any]) -> str:
    """Return a description of a protocol with its main values."""
    try:
        return str(from_values(protocol))
    except InputError:  # the user's own attack
        return f"{protocol['name']}, {ball(protocol)}".rstrip(", ")


def ball(protocol: Mapping[str, Any]) -> str:
    """Return the radius of the ball in words; "" without a ball."""
    eps = protocol.get("eps")
    return f"eps {format_distance(float(eps), str(protocol.get('norm', 'linf')))}" if eps else ""


def winners(group: Group, figure: str, level: float = 0.05) -> set[str]:
    """Return the model, if any, that is significantly better than every other in paired tests, corrected by Holm."""
    beaten: dict[str, set[str]] = {name: set() for name in group.members}
    for pair in group.of(figure):
        if pair.p_holm < level and pair.difference:
            better, worse = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
            beaten[better].add(worse)
    return {name for name, others in beaten.items() if len(others) == len(group.members) - 1 > 0}
