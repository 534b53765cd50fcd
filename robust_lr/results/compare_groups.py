"""Compare kinds of networks with several training runs of each, paired by image and seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.random_effects import Estimate, images_needed, mean_over_runs, runs_needed
from ..utils.statistics import holm
from .compare import FIGURES, check_comparable
from .stored import Evaluation, read_evaluation
from .verdict import MISLED

METHODS = {
    "interval": "95 %, two-way random effects over training runs and images (Searle et al. 1992; quantiles joined "
    "as in Graybill and Wang 1980)",
    "p": "two-sided, of the same model",
    "p_holm": "Holm 1979, over the pairs of a figure",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two groups in one accuracy.

    Attributes:
        figure: the accuracy, one of ``compare.FIGURES``.
        first, second: names of the groups.
        estimate: accuracy of the first group minus that of the second.
        p_holm: p-value corrected for the number of pairs (Holm 1979); NaN if a run has the verdict "misled".
        pairs: number of pairs that are tested together.
    """

    figure: str
    first: str
    second: str
    estimate: Estimate
    p_holm: float
    pairs: int

    @property
    def runs_needed(self) -> int | None:
        """Number of training runs that would decide the difference after the correction; None if too many."""
        return runs_needed(self.estimate, tests=self.pairs)

    @property
    def images_needed(self) -> int | None:
        """Number of images that would decide the difference after the correction; None if too many."""
        return images_needed(self.estimate, tests=self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        untested = {"p": None, "p_holm": None} if isnan(self.p_holm) else {"p_holm": self.p_holm}
        return {
            "figure": self.figure,
            "first": self.first,
            "second": self.second,
            **estimate_to_dict(self.estimate),
            **untested,
            "runs_needed": self.runs_needed,
            "images_needed": self.images_needed,
        }


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """The comparison of several groups of training runs.

    Attributes:
        data: name of the data set.
        protocol: every value of the attack.
        seeds: seed of each run's evaluation.
        accuracies: by group and figure.
        differences: every pair of groups in every figure.
        verdicts: verdicts on the runs of each group; None for runs that were not probed.
    """

    data: str
    protocol: dict[str, Any]
    seeds: tuple[int, ...]
    accuracies: dict[str, dict[str, Estimate]]
    differences: tuple[Difference, ...]
    verdicts: dict[str, tuple[str | None, ...]]

    def differences_in(self, figure: str) -> list[Difference]:
        """Return the differences of all pairs in one figure."""
        return [difference for difference in self.differences if difference.figure == figure]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": 1,
            "data": self.data,
            "protocol": self.protocol,
            "seeds": list(self.seeds),
            "methods": METHODS,
            "verdicts": {name: list(verdicts) for name, verdicts in self.verdicts.items()},
            "accuracies": {
                name: {figure: estimate_to_dict(estimate) for figure, estimate in figures.items()}
                for name, figures in self.accuracies.items()
            },
            "differences": [difference.to_dict() for difference in self.differences],
        }


def compare_groups(groups: Sequence[Sequence[str | Path]], *, allow: Collection[str] = ()) -> GroupComparison:
    """Compare groups of evaluations. A group has one evaluation for each training run of one kind of network.

    Args:
        groups: folders that ``evaluate`` wrote, by group and run; runs at the same position are paired.
        allow: ("misled",) also tests groups with the verdict "misled"; by default their pairs have no p-value.

    Raises:
        InputError: fewer than two groups or two runs, groups of different sizes, paired runs that differ in protocol,
            seed, images or targets, or runs of a group that differ in protocol or images or have the same weights.
    """
    if len(groups) < 2 or min(map(len, groups)) < 2:
        raise InputError("a comparison of groups needs two groups or more, each with two training runs or more")
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise InputError(
            f"the groups have {', '.join(map(str, sizes))} runs: give one run for each seed in every group"
        )
    runs = [[read_evaluation(folder) for folder in group] for group in groups]
    return compare_runs(dict(zip(name_groups(runs), runs, strict=True)), allow=allow)


def compare_runs(named: Mapping[str, Sequence[Evaluation]], *, allow: Collection[str] = ()) -> GroupComparison:
    """Compare groups of evaluations, by name, as ``compare_groups`` does."""
    runs = list(named.values())
    for group in runs:
        for run in group[1:]:
            check_comparable(group[0], run, same_draw=False)
        hashes = [run.record["weights_sha256"] for run in group]
        for run, found in zip(group, hashes, strict=True):
            if hashes.count(found) > 1:
                raise InputError(f"{run.folder}: another run of its group has the same weights; give different runs")
    for place in zip(*runs, strict=True):
        for run in place[1:]:
            check_comparable(place[0], run)
    verdicts = {name: tuple(run.record.get("verdict") for run in group) for name, group in named.items()}
    withheld = set() if MISLED in allow else {name for name, found in verdicts.items() if MISLED in found}
    return GroupComparison(
        data=runs[0][0].record["data"],
        protocol=runs[0][0].protocol,
        seeds=tuple(run.record["seed"] for run in runs[0]),
        accuracies={
            name: {figure: mean_over_runs(right_by_run(group, figure)) for figure in FIGURES}
            for name, group in named.items()
        },
        differences=tuple(
            difference
            for figure in FIGURES
            for difference in compare_pairs(named, figure, set() if figure == "clean" else withheld)
        ),
        verdicts=verdicts,
    )


def name_groups(runs: Sequence[Sequence[Evaluation]]) -> list[str]:
    """Return the names of the groups' models, or of their first folders if the models have the same name."""
    models = [group[0].record["model"] for group in runs]
    return models if len(set(models)) == len(models) else [str(group[0].folder) for group in runs]


def right_by_run(group: Sequence[Evaluation], figure: str) -> Tensor:
    """Return 1 for each run and image that is right in this figure, else 0: [runs, images] float64."""
    return torch.tensor([[FIGURES[figure](row) for row in run.rows] for run in group], dtype=torch.float64)


def compare_pairs(
    named: Mapping[str, Sequence[Evaluation]], figure: str, withheld: Collection[str]
) -> list[Difference]:
    """Compare every pair of groups in one figure, in the given order; groups in ``withheld`` get no p-value."""
    values = {name: right_by_run(group, figure) for name, group in named.items()}
    chosen = list(combinations(named, 2))
    estimates = [mean_over_runs(values[first] - values[second]) for first, second in chosen]
    adjusted = holm([estimate.p for estimate in estimates])
    return [
        Difference(
            figure=figure,
            first=first,
            second=second,
            estimate=estimate,
            p_holm=nan if {first, second} & set(withheld) else p,
            pairs=len(chosen),
        )
        for (first, second), estimate, p in zip(chosen, estimates, adjusted, strict=True)
    ]


def estimate_to_dict(estimate: Estimate) -> dict[str, Any]:
    """Return the JSON form; the interval and the p-value of a single run are null."""
    return {
        "value": estimate.value,
        "interval": list(estimate.interval) if isfinite(estimate.interval[0]) else None,
        "p": estimate.p if estimate.components else None,
        "std": estimate.std,
        "per_run": list(estimate.per_run),
        "images": estimate.images,
        "components": None if estimate.components is None else asdict(estimate.components),
    }
