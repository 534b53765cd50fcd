"""The paper's claims about robustness, tested on our networks: confirmed, contradicted or not decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..results.compare import FIGURES
from ..results.compare_groups import estimate_to_dict
from ..results.stored import read_evaluation
from ..utils.checks import check_name, convert
from ..utils.errors import InputError
from ..utils.random_effects import LEVEL, Estimate, images_needed, mean_over_runs, runs_needed
from ..utils.statistics import holm
from .clean_accuracy import CLEAN
from .jobs import Job

#: accuracies that a claim can be about; the paper's is "robust", the accuracy at the last iterate
CLAIM_FIGURES = ("robust", "worst-seen")
REGIME = "adversarial"


@dataclass(frozen=True)
class Claim:
    """The claim that the network ``first`` is more accurate than ``second``, both adversarially trained.

    Attributes:
        first, second: labels of table rows.
        attack: name of the attack, or "clean".
        figure: accuracy under the attack, one of ``CLAIM_FIGURES``.
        paper: the paper's difference on ImageNet in percentage points; None if the paper gives none.
    """

    first: str
    second: str
    attack: str
    figure: str
    paper: float | None

    def __str__(self) -> str:
        return f"{self.first} over {self.second}, {self.attack.removeprefix('lrnet-')}"


@dataclass(frozen=True)
class Verdict:
    """The test of a claim.

    Attributes:
        estimate: our difference of accuracies, over training runs and images.
        p_holm: p-value, corrected for the number of claims (Holm 1979).
        claims: number of claims that are tested together.
    """

    claim: Claim
    estimate: Estimate
    p_holm: float
    claims: int

    @property
    def runs_needed(self) -> int | None:
        """Number of training runs that would decide the claim after the correction; None if too many."""
        return runs_needed(self.estimate, tests=self.claims)

    @property
    def images_needed(self) -> int | None:
        """Number of images that would decide the claim after the correction; None if too many."""
        return images_needed(self.estimate, tests=self.claims)

    @property
    def outcome(self) -> str:
        """ "confirmed", "contradicted" or "not decided"."""
        if self.p_holm >= 1 - LEVEL:
            return "not decided"
        return "confirmed" if self.estimate.value > 0 else "contradicted"

    def describe(self) -> str:
        """Return the verdict in words, with the sample size that would decide it or a comparison with the paper."""
        low, high = self.estimate.interval
        if self.estimate.components is None:
            return "not decided: a single training run says nothing about others; use more seeds"
        if self.outcome == "not decided":
            ways = [f"{self.runs_needed:,} seeds"] if self.runs_needed else []
            ways += [f"{self.images_needed:,} images"] if self.images_needed else []
            return f"not decided; a true difference of this size would take {' or '.join(ways) or 'more of both'}"
        if self.claim.paper is None:
            return self.outcome
        inside = low <= self.claim.paper / 100 <= high
        return (
            f"{self.outcome}; the paper's {self.claim.paper:+.1f} is {'inside' if inside else 'outside'} the interval"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; differences are fractions, except the paper's, in percentage points."""
        return {
            "first": self.claim.first,
            "second": self.claim.second,
            "attack": self.claim.attack,
            "figure": self.claim.figure,
            "paper": self.claim.paper,
            **estimate_to_dict(self.estimate),
            "p_holm": self.p_holm,
            "verdict": self.outcome,
            "sentence": self.describe(),
            "runs_needed": self.runs_needed,
            "images_needed": self.images_needed,
        }


@dataclass(frozen=True)
class Outcomes:
    """Whether each training run is right on each image: 0 or 1, [runs, images] float64.

    ``values`` is keyed by (label, regime, attack), then by figure.
    """

    values: Mapping[tuple[str, str, str], Mapping[str, Tensor]]

    def values_of(self, label: str, attack: str, figure: str) -> Tensor:
        """Return the values [runs, images] of an adversarially trained network."""
        if attack == CLEAN:
            first = next(key for key in self.values if key[:2] == (label, REGIME))
            return self.values[first]["clean"]
        return self.values[label, REGIME, attack][figure]

    def estimates(self, label: str, regime: str, attack: str) -> dict[str, Estimate]:
        """Return the estimated accuracies over runs and images by figure; empty if there are no outcomes."""
        found = self.values.get((label, regime, attack), {})
        return {figure: mean_over_runs(values) for figure, values in found.items()}


def read_outcomes(jobs: Sequence[Job]) -> Outcomes:
    """Read the ledgers of finished jobs."""
    runs: dict[tuple[str, str, str], dict[str, list[list[bool]]]] = {}
    for job in jobs:
        for attack in job.attacks:
            rows = read_evaluation(job.evaluation_folder(attack)).rows
            for figure, is_right in FIGURES.items():
                by_figure = runs.setdefault((job.label, job.regime, attack.name), {})
                by_figure.setdefault(figure, []).append([is_right(row) for row in rows])
    return Outcomes(
        {
            key: {figure: torch.tensor(values, dtype=torch.float64) for figure, values in figures.items()}
            for key, figures in runs.items()
        }
    )


def judge(claims: Sequence[Claim], outcomes: Outcomes) -> list[Verdict]:
    """Test every claim on differences paired by image and seed; p-values are corrected for their number (Holm 1979)."""
    estimates = [
        mean_over_runs(
            outcomes.values_of(claim.first, claim.attack, claim.figure)
            - outcomes.values_of(claim.second, claim.attack, claim.figure)
        )
        for claim in claims
    ]
    adjusted = holm([estimate.p for estimate in estimates])
    return [Verdict(claim, found, p, len(claims)) for claim, found, p in zip(claims, estimates, adjusted, strict=True)]


def read_claims(entries: Any, labels: Sequence[str], attacks: Sequence[str]) -> tuple[Claim, ...]:
    """Read the [[claims]] of a table.

    Args:
        entries: value of ``claims`` in the TOML file, a list of tables with the fields of ``Claim``.
        labels: allowed values of ``first`` and ``second``.
        attacks: allowed values of ``attack``.

    Raises:
        InputError: unknown keys or names, wrong values.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"claims = {entries!r}: [[claims]] tables are needed")
    claims = []
    for entry in entries:
        for key in entry:
            check_name("key of [[claims]]", key, ["first", "second", "attack", "figure", "paper"])
        first, second, attack = (
            convert(str, entry.get(key, 0), f"claims.{key}") for key in ("first", "second", "attack")
        )
        for label in (first, second):
            check_name("label in [[claims]]", label, labels)
        check_name("attack in [[claims]]", attack, attacks)
        figure = convert(str, entry.get("figure", "robust"), "claims.figure")
        check_name("figure in [[claims]]", figure, CLAIM_FIGURES)
        paper = convert(float, entry["paper"], "claims.paper") if "paper" in entry else None
        if paper is not None and not isfinite(paper):
            raise InputError(f"claims.paper = {paper}: must be finite")
        claims.append(Claim(first, second, attack, figure, paper))
    return tuple(claims)
