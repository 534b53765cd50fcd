"""Estimate the time of a whole table: steps of every network measured here, and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..protocols.base import Protocol, StepwiseProtocol
from ..training.plan import Plan, plan
from .jobs import Attack
from .tables import Table, TableRow

#: a training pass updates the weights, too: about half as much again as a pass for an attack
TRAINING_PASS = 1.5

#: images of a test split whose number the config does not say
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class RowPlan:
    """The time of one network under one regime, for all its training runs.

    Attributes:
        training: of one training run.
        evaluation: hours for the attacks of all runs, at most: images that are decided leave some of them early.
        runs: their number.
    """

    label: str
    regime: str
    training: Plan
    evaluation: float
    runs: int

    @property
    def hours(self) -> float:
        """Hours of the whole row."""
        return self.training.hours * self.runs + self.evaluation


def plan_table(table: Table, *, processes: int = 1, images: int = 0, steps: int = 3) -> list[RowPlan]:
    """Measure a few training steps of every network and extrapolate; arguments as in ``training.plan.plan``."""
    return [
        plan_row(table, row, regime, processes=processes, images=images, steps=steps)
        for regime in reversed(table.regimes)
        for row in table.rows
    ]


def plan_row(table: Table, row: TableRow, regime: str, *, processes: int, images: int, steps: int) -> RowPlan:
    """Plan the training runs and evaluations of one network."""
    config = row.configs[regime]
    training = plan(config, processes=processes, images=images, steps=steps)
    pass_seconds = training.seconds / training.images / (config.attack.steps + TRAINING_PASS)
    runs = len(table.seeds_of(row, regime))
    attacks = [attack for run in range(runs) for attack in table.attacks(regime, run)]
    passes = sum((attack.limit or TEST_IMAGES) * most_passes(attack) for attack in attacks)
    return RowPlan(row.label, regime, training, passes * pass_seconds / processes / 3600, runs)


def most_passes(attack: Attack) -> int:
    """Count the passes of an attack on one image that withstands it; a pass without gradient counts as a third."""
    return 1 + sum(count_passes(part) for part in attack.protocol.attacks())


def count_passes(protocol: Protocol) -> int:
    """Count the passes of one attack; the targeted ones of AutoAttack run for nine classes."""
    draws = protocol.draws(10) if isinstance(protocol, StepwiseProtocol) else 9
    passes = draws * protocol.steps
    return passes if protocol.follows_gradients else passes // 3


def total_hours(plans: Sequence[RowPlan]) -> float:
    """Add up the hours of all rows, one after the other."""
    return sum(each.hours for each in plans)
