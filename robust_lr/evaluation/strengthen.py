"""Strengthen an attack until the number stops moving: the parts of AutoAttack, each on the images that are left.

Each rung of the ladder is an evaluation of its own, with a ledger in a folder below that of the first: an interrupted
ladder goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.dataset import Dataset
from ..protocols.apgd import APGD
from ..protocols.base import Protocol
from ..protocols.presets import autoattack
from ..results.ledger import Row
from ..results.result import Result
from ..results.stored import RESULT
from ..results.verdict import MISLED, SOUND
from ..utils.checks import at_least
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.statistics import Proportion
from .harness import evaluate

#: forward passes for each image that the ladder may take, a backward pass counted twice: AutoAttack "standard" takes
#: about 11,000
DEFAULT_BUDGET = 12_000

#: share of all images up to which a rung leaves the number where it was
STILL = 0.002

#: folder below that of the evaluation
FOLDER = "until-sound"


@dataclass(frozen=True)
class Rung:
    """One attack of the ladder: images that it attacked and broke, passes that it took, and the verdict after it."""

    protocol: str
    images: int
    broken: int
    passes: int
    verdict: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Strengthened:
    """Outcome of a ladder.

    Attributes:
        first: the evaluation that it began with.
        rungs: attacks that ran, in their order.
        robust: share of the images that withstood the first attack and all rungs.
        budget, passes: forward passes that were allowed and taken, for all images together.
        verdict: on the number after the last rung.
        ended: why the ladder ended, in words.
    """

    first: Result
    rungs: tuple[Rung, ...]
    robust: Proportion
    budget: int
    passes: int
    verdict: str | None
    ended: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "robust_accuracy": self.robust.value,
            "interval": list(self.robust.interval),
            "n": self.robust.n,
            "verdict": self.verdict,
            "ended": self.ended,
            "budget": self.budget,
            "passes": self.passes,
            "rungs": [asdict(rung) for rung in self.rungs],
        }


def ladder(eps: float, norm: str) -> tuple[Protocol, ...]:
    """Attacks in the order in which they run: the parts of AutoAttack "standard", and a longer APGD on the margin."""
    source = "ours: the parts of AutoAttack, each on the images that are left"
    longest = APGD(name="apgd-margin-500", eps=eps, norm=norm, steps=500, loss="margin", source=source)
    return (*autoattack(FOLDER, eps, norm, source).parts, longest)


def strengthen(
    model: nn.Module,
    data: Dataset,
    first: Result,
    *,
    out: str | Path | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Strengthened:
    """Attack the images that ``first`` calls robust by stronger and stronger attacks, until the number stops moving.

    It ends where probes call the number sound and the last attack moved it by at most 0.2 points, where they call it
    misled, or where the next attack would exceed the budget.

    Args:
        model, data: of the evaluation ``first``, untargeted and on all of ``data``.
        out: folder of the evaluation, whose result.json gets what the ladder found as "until_sound".
        budget: forward passes for each image of ``data``; a backward pass counts twice.
        progress: called as ``progress(attack, done, total)``.
        options: of ``evaluate``, e.g. seed and processes.

    Raises:
        InputError: a targeted or minimum-norm evaluation, or one without a verdict; and as ``evaluate``.
    """
    at_least(1, budget=budget)
    check_can_be_strengthened(first)
    position = {id_: number for number, id_ in enumerate(data.ids.tolist())}
    left = robust_ids(first.rows)
    spent, moved, rungs = 0, 1.0, list[Rung]()
    verdict, reason, ended = first.verdict, first.judgment.reason, "the ladder has no further attack"
    attacks = ladder(float(first.protocol["eps"]), str(first.protocol["norm"]))
    for number, attack in enumerate(attacks):
        if not left:
            verdict, ended = SOUND, "no image is left"
            break
        if verdict == SOUND and (number == 0 or moved <= STILL):
            ended = "the number has stopped moving"
            break
        if verdict == MISLED:
            ended = f"stronger attacks by gradients do not help: {reason}"
            break
        if spent + len(left) * price(attack, data.num_classes) > budget * first.n:
            ended = f"the next attack, {attack.name}, may exceed the budget of {budget:,} passes an image"
            break
        result = evaluate(
            model,
            data.subset(torch.tensor([position[id_] for id_ in left])),
            attack,
            out=None if out is None else Path(out) / FOLDER / f"{number + 1}-{attack.name}",
            resume=True,
            check="default",
            progress=None if progress is None else lambda done, total, name=attack.name: progress(name, done, total),  # type: ignore[misc]
            **options,
        )
        still = robust_ids(result.rows)
        passes = sum(row.forwards + 2 * row.backwards for row in result.rows)
        moved, verdict, reason = (len(left) - len(still)) / first.n, result.verdict, result.judgment.reason
        rungs.append(Rung(attack.name, len(left), len(left) - len(still), passes, verdict, reason))
        left, spent = still, spent + passes
    else:
        if verdict == SOUND and moved <= STILL:
            ended = "the number has stopped moving"
    found = Strengthened(
        first=first,
        rungs=tuple(rungs),
        robust=Proportion(len(left), first.n),
        budget=budget * first.n,
        passes=spent,
        verdict=verdict,
        ended=ended,
    )
    if out is not None:
        write_json(Path(out) / RESULT, {**first.to_dict(), "until_sound": found.to_dict()})
    return found


def check_can_be_strengthened(first: Result) -> None:
    """InputError for an evaluation whose images a ladder of untargeted attacks cannot go on with."""
    if first.protocol.get("targeted") or not first.protocol.get("eps"):
        raise InputError(
            f"protocol {first.protocol['name']!r}: only untargeted attacks in a ball can be strengthened until sound"
        )
    if first.verdict is None:
        raise InputError("the evaluation has no verdict: leave `check` on")
    if first.shard is not None:
        raise InputError(f"the evaluation is shard {first.shard}: strengthen the whole")


def robust_ids(rows: tuple[Row, ...]) -> list[int]:
    return [row.id for row in rows if row.robust]


def price(attack: Protocol, num_classes: int) -> int:
    """Forward passes for one image that withstands ``attack``, a backward pass counted twice."""
    draws = attack.draws(num_classes) if hasattr(attack, "draws") else 1
    return int(attack.steps * draws * (3 if attack.follows_gradients else 1))
