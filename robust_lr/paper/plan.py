"""Estimate the duration of a whole table from a few training steps of every network, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..protocols.base import Protocol, StepwiseProtocol
from ..training.plan import Plan, plan
from .jobs import Attack
from .tables import Table, TableRow

#: cost of a training pass in units of an attack's pass; it also computes the gradients of the weights
TRAINING_PASS = 1.5

#: assumed number of test images if the config sets no limit
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class RowPlan:
    """Estimated duration for one network and regime, over all its training runs.

    Attributes:
        training: estimate for one training run.
        evaluation: upper bound of the hours for the attacks on all runs; decided images leave some attacks early.
        runs: number of training runs.
    """

    label: str
    regime: str
    training: Plan
    evaluation: float
    runs: int

    @property
    def hours(self) -> float:
        """Estimated hours of the whole row."""
        return self.training.hours * self.runs + self.evaluation


def plan_table(table: Table, *, processes: int = 1, images: int = 0, steps: int = 3) -> list[RowPlan]:
    """Measure a few training steps of every network and extrapolate; the arguments are those of ``training.plan``."""
    return [
        plan_row(table, row, regime, processes=processes, images=images, steps=steps)
        for regime in reversed(table.regimes)
        for row in table.rows
    ]


def plan_row(table: Table, row: TableRow, regime: str, *, processes: int, images: int, steps: int) -> RowPlan:
    """Estimate the duration of the training runs and evaluations of one network."""
    config = row.configs[regime]
    training = plan(config, processes=processes, images=images, steps=steps)
    pass_seconds = training.seconds / training.images / (config.attack.steps + TRAINING_PASS)
    runs = len(table.seeds_of(row, regime))
    attacks = [attack for run in range(runs) for attack in table.attacks(regime, run)]
    passes = sum((attack.limit or TEST_IMAGES) * most_passes(attack) for attack in attacks)
    return RowPlan(row.label, regime, training, passes * pass_seconds / processes / 3600, runs)


def most_passes(attack: Attack) -> int:
    """Return the number of passes on an image that withstands the attack; one without gradient counts as a third."""
    return 1 + sum(count_passes(part) for part in attack.protocol.attacks())


def count_passes(protocol: Protocol) -> int:
    """Return the number of passes of one attack; AutoAttack's targeted attacks run for nine classes."""
    draws = protocol.draws(10) if isinstance(protocol, StepwiseProtocol) else 9
    passes = draws * protocol.steps
    return passes if protocol.follows_gradients else passes // 3


def total_hours(plans: Sequence[RowPlan]) -> float:
    """Return the hours of all rows, run one after the other."""
    return sum(each.hours for each in plans)
