"""Compare the robustness of models on the same images and targets, paired by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.statistics import Proportion, difference, holm, mcnemar
from .ledger import Row, explain_difference, first_difference, format_for_message
from .stored import Evaluation, read_evaluation
from .verdict import MISLED

#: accuracies that can be compared, as predicates on the row of an image
FIGURES: dict[str, Callable[[Row], bool]] = {
    "clean": lambda row: row.clean == row.label,
    "robust": lambda row: row.robust,
    "worst-seen": lambda row: row.robust_worst_seen,
}

#: values of a result that must agree, besides the protocol
_SAME = ("n", "shard", "data", "seed", "precision", "images_sha256", "targets_sha256")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The comparison of two models in one accuracy, image by image.

    Attributes:
        figure: the accuracy, one of ``FIGURES``.
        first, second: names of the models.
        both, only_first, only_second, neither: numbers of images that both models, one or neither get right.
        difference: accuracy of the first model minus that of the second.
        interval: 95 % interval of the difference (Newcombe 1998, method 10).
        p: two-sided p-value of McNemar's exact test; NaN if the verdict on a model is "misled".
        p_holm: p-value corrected for the number of pairs (Holm 1979).
    """

    figure: str
    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of several models.

    Attributes:
        data: name of the data set.
        protocol: every value of the attack.
        accuracies: by model and figure.
        pairs: every pair of models in every figure.
        verdicts: verdict on each model's robust accuracy; None where it was not probed.
    """

    data: str
    protocol: dict[str, Any]
    accuracies: dict[str, dict[str, Proportion]]
    pairs: tuple[Pair, ...]
    verdicts: dict[str, str | None] = field(default_factory=dict)

    def pairs_in(self, figure: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.figure == figure]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": 1,
            "data": self.data,
            "protocol": self.protocol,
            "methods": {
                "p": "McNemar, exact, two-sided",
                "p_holm": "Holm 1979, over the pairs of a figure",
                "interval": "95 %, Newcombe 1998, method 10",
            },
            "accuracies": {
                name: {
                    figure: {"value": share.value, "n": share.n, "interval": list(share.interval)}
                    for figure, share in figures.items()
                }
                for name, figures in self.accuracies.items()
            },
            "verdicts": self.verdicts,
            "pairs": [
                {
                    **asdict(pair),
                    "interval": list(pair.interval),
                    "p": None if isnan(pair.p) else pair.p,
                    "p_holm": None if isnan(pair.p_holm) else pair.p_holm,
                }
                for pair in self.pairs
            ],
        }


def compare(folders: Sequence[str | Path], *, allow: Collection[str] = ()) -> Comparison:
    """Compare evaluations pairwise.

    Args:
        folders: folders that ``evaluate`` wrote.
        allow: ("misled",) also tests models whose verdict is "misled"; by default their pairs have no p-value.

    Raises:
        InputError: fewer than two evaluations, an unfinished one, or two that differ in protocol, seed, precision,
            images or targets; the message names the first difference.
    """
    if len(folders) < 2:
        raise InputError(f"a comparison needs the folders of two evaluations or more, not {len(folders)}")
    runs = [read_evaluation(folder) for folder in folders]
    for run in runs[1:]:
        check_comparable(runs[0], run)
    names = [run.record["model"] for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)} is given twice: give different evaluations")
    named = dict(zip(names, runs, strict=True))
    return Comparison(
        data=runs[0].record["data"],
        protocol=runs[0].protocol,
        accuracies={
            name: {figure: Proportion(sum(map(right, run.rows)), len(run.rows)) for figure, right in FIGURES.items()}
            for name, run in named.items()
        },
        pairs=tuple(
            pair
            for figure in FIGURES
            for pair in compare_pairs(
                named, figure, withheld=() if figure == "clean" or "misled" in allow else find_misled(named)
            )
        ),
        verdicts={name: run.record.get("verdict") for name, run in named.items()},
    )


def check_comparable(first: Evaluation, second: Evaluation, *, same_draw: bool = True) -> None:
    """Check that two evaluations have the same protocol, pixels, seed and targets.

    Args:
        same_draw: also compare the seed and the targets.

    Raises:
        InputError: they differ; the message names the first difference.
    """
    drawn = () if same_draw else ("seed", "targets_sha256")
    one, other = (
        {
            **{f"protocol.{key}": value for key, value in run.protocol.items()},
            **{key: run.record.get(key) for key in _SAME},
        }
        for run in (first, second)
    )
    # the targets themselves are compared, not how they were chosen
    found = first_difference(one, other, but=("protocol.name", "protocol.source", "protocol.target", *drawn))
    if found is not None:
        key, its, theirs = found
        raise InputError(
            f"{first.folder} and {second.folder} cannot be compared: {key} is {format_for_message(its)} in the "
            f"first, {format_for_message(theirs)} in the second{explain_difference(key)}{_ADVICE.get(key, '')}"
        )
    for row, theirs in zip(first.rows, second.rows, strict=True):
        for name in ("id", "input_hash", "label", *(("target",) if same_draw else ())):
            one, other = getattr(row, name), getattr(theirs, name)
            if one != other:
                raise InputError(
                    f"{first.folder} and {second.folder} cannot be compared: the {name} of image {row.id} is {one} in "
                    f"the first, {other} in the second"
                )


_ADVICE = {"targets_sha256": "; save the targets of one and give them to the other as `targets`"}


def find_misled(named: dict[str, Evaluation]) -> set[str]:
    """Return the names of the models with the verdict "misled"."""
    return {name for name, run in named.items() if run.record.get("verdict") == MISLED}


def compare_pairs(named: dict[str, Evaluation], figure: str, withheld: Collection[str] = ()) -> list[Pair]:
    """Compare every pair of models in one figure, in the given order; models in ``withheld`` get no p-value."""
    right = {name: [FIGURES[figure](row) for row in run.rows] for name, run in named.items()}
    chosen = list(combinations(named, 2))
    tables = [Counter(zip(right[first], right[second], strict=True)) for first, second in chosen]
    p_values = [mcnemar(table[True, False], table[False, True]) for table in tables]
    out = []
    for (first, second), table, p, p_holm in zip(chosen, tables, p_values, holm(p_values), strict=True):
        counts = table[True, True], table[True, False], table[False, True], table[False, False]
        apart, low, high = difference(*counts)
        tested = first not in withheld and second not in withheld
        out.append(
            Pair(
                figure=figure,
                first=first,
                second=second,
                both=counts[0],
                only_first=counts[1],
                only_second=counts[2],
                neither=counts[3],
                difference=apart,
                interval=(low, high),
                p=p if tested else nan,
                p_holm=p_holm if tested else nan,
            )
        )
    return out
