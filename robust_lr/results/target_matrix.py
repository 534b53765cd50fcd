"""Success of targeted attacks for every pair of class and target class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.statistics import Proportion
from .ledger import Row
from .result import figures

MATRIX = "matrix.json"


@dataclass(frozen=True, kw_only=True)
class TargetMatrix:
    """Success of targeted attacks by class and target.

    Attributes:
        model, data: names of the model and of the data set.
        protocol: every value of the attack.
        reached: number of successes, by class and target; zero on the diagonal.
        attacked: number of images whose clean prediction was not the target, by class and target.
        robust: proportion of images that are right under the attacks on every target.
        any_reached: proportion of images that reached some target, among those that are right when clean.
        passes: number of forward and backward passes, summed over images and targets.
    """

    model: str
    data: str
    protocol: dict[str, Any]
    reached: tuple[tuple[int, ...], ...]
    attacked: tuple[tuple[int, ...], ...]
    robust: Proportion
    any_reached: Proportion
    passes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": 1,
            "model": self.model,
            "data": self.data,
            "protocol": self.protocol,
            "reached": [list(row) for row in self.reached],
            "attacked": [list(row) for row in self.attacked],
            "passes": self.passes,
            **figures({"robust_accuracy_all_targets": self.robust, "any_target_reached": self.any_reached}),
        }


def build_matrix(
    runs: Sequence[Sequence[Row]], num_classes: int, *, model: str, data: str, protocol: dict[str, Any]
) -> TargetMatrix:
    """Build the matrix from the rows of several attacks on the same images, each with another target per image."""
    reached = [[0] * num_classes for _ in range(num_classes)]
    attacked = [[0] * num_classes for _ in range(num_classes)]
    robust: dict[int, bool] = {}
    hit: dict[int, bool] = {}
    for row in (row for rows in runs for row in rows):
        assert row.target is not None, "attacks on all targets are targeted"
        attacked[row.label][row.target] += row.clean != row.target
        reached[row.label][row.target] += row.success and row.clean != row.target
        robust[row.id] = robust.get(row.id, True) and row.robust
        if row.clean == row.label:
            hit[row.id] = hit.get(row.id, False) or row.success
    return TargetMatrix(
        model=model,
        data=data,
        protocol=protocol,
        reached=tuple(map(tuple, reached)),
        attacked=tuple(map(tuple, attacked)),
        robust=Proportion(sum(robust.values()), len(robust)),
        any_reached=Proportion(sum(hit.values()), len(hit)),
        passes=sum(row.forwards + row.backwards for rows in runs for row in rows),
    )
