"""Strengthen an attack until the number stops moving: run the parts of AutoAttack, each on the images that are left.

The attacks form a ladder. Each rung is an evaluation with its own ledger in a folder below that of the first one, so
an interrupted ladder continues where it stopped.
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
from ..utils.checks import check_at_least
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.statistics import Proportion
from .harness import evaluate

#: budget of forward passes per image, where a backward pass counts twice; AutoAttack "standard" takes about 11,000
DEFAULT_BUDGET = 12_000

#: the number has stopped moving if a rung breaks at most this share of all images
STILL = 0.002

#: folder below that of the evaluation
FOLDER = "until-sound"


@dataclass(frozen=True)
class Rung:
    """One attack of the ladder: how many images it attacked and broke, its passes, and the verdict after it."""

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
        first: the evaluation that the ladder began with.
        rungs: attacks that ran, in order.
        robust: share of the images that withstood the first attack and all rungs.
        budget, passes: forward passes that were allowed and taken, for all images together.
        verdict: verdict on the number after the last rung.
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


def build_ladder(eps: float, norm: str) -> tuple[Protocol, ...]:
    """Return the attacks in order: the parts of AutoAttack "standard", then a longer APGD on the margin."""
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
    """Attack the images that ``first`` calls robust with stronger and stronger attacks, until the number stops moving.

    It ends when probes call the number sound and the last attack moved it by at most 0.2 points, when they call it
    misled, or when the next attack would exceed the budget.

    Args:
        model, data: those of the evaluation ``first``, which is untargeted and on all of ``data``.
        out: folder of the evaluation; the outcome is added to its result.json as "until_sound".
        budget: forward passes per image of ``data``; a backward pass counts twice.
        progress: called as ``progress(attack, done, total)``.
        options: options of ``evaluate``, e.g. seed and processes.

    Raises:
        InputError: a targeted or minimum-norm evaluation, or one without a verdict; and as ``evaluate``.
    """
    check_at_least(1, budget=budget)
    check_can_be_strengthened(first)
    position = {id_: number for number, id_ in enumerate(data.ids.tolist())}
    left = robust_ids(first.rows)
    spent, moved, rungs = 0, 1.0, list[Rung]()
    verdict, reason, ended = first.verdict, first.judgment.reason, "the ladder has no further attack"
    attacks = build_ladder(float(first.protocol["eps"]), str(first.protocol["norm"]))
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
        if spent + len(left) * estimate_passes(attack, data.num_classes) > budget * first.n:
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
    """Raise InputError for an evaluation that a ladder of untargeted attacks cannot continue."""
    if first.protocol.get("targeted") or not first.protocol.get("eps"):
        raise InputError(
            f"protocol {first.protocol['name']!r}: only untargeted attacks in a ball can be strengthened until sound"
        )
    if first.verdict is None:
        raise InputError("the evaluation has no verdict: evaluate again with probes, which `check` switches off")
    if first.shard is not None:
        raise InputError(f"the evaluation is shard {first.shard}: merge the shards and strengthen the whole")


def robust_ids(rows: tuple[Row, ...]) -> list[int]:
    return [row.id for row in rows if row.robust]


def estimate_passes(attack: Protocol, num_classes: int) -> int:
    """Return the forward passes for one image that withstands ``attack``; a backward pass counts twice."""
    draws = attack.draws(num_classes) if hasattr(attack, "draws") else 1
    return int(attack.steps * draws * (3 if attack.follows_gradients else 1))
