"""The verdict on a robust accuracy: sound, weak or misled, and by how many points it is inflated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..utils.statistics import wilson
from .ledger import Row
from .validity import Check

SOUND, WEAK, MISLED = "sound", "weak", "misled"

#: a verdict is not "sound" if the lower bound of the inflation exceeds this share of the images
MAX_INFLATION = 0.02

#: kinds of probes: stronger gradient attacks, and attacks that gradient attacks dominate if gradients are sound
STRONGER, DOMINATED = "stronger", "dominated"


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Findings of the probes on a sample of the robust images of an evaluation; its ledger keeps them.

    Attributes:
        sample: ids of the probed images.
        broken: name and kind of the first probe that broke an image, by id.
        ran: names of the probes that ran, in order.
        failed: names of the probes that cannot run on the model.
        checks: checks of the model's structure.
        misleading: names of the checks whose failure gives the verdict "misled".
        passes: number of forward and backward passes of the probes, summed over images.
        seconds: duration of the probes.
    """

    sample: tuple[int, ...] = ()
    broken: dict[int, tuple[str, str]] = field(default_factory=dict)
    ran: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    misleading: tuple[str, ...] = ()
    passes: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "broken": [[id_, *found] for id_, found in self.broken.items()]}

    @staticmethod
    def from_json(kept: dict[str, Any]) -> Probes:
        return Probes(
            sample=tuple(kept["sample"]),
            broken={id_: (name, kind) for id_, name, kind in kept["broken"]},
            ran=tuple(kept["ran"]),
            failed=tuple(kept["failed"]),
            checks=tuple(Check(**check) for check in kept["checks"]),
            misleading=tuple(kept["misleading"]),
            passes=kept["passes"],
            seconds=kept["seconds"],
        )


def join_probes(parts: Sequence[Probes | None]) -> Probes | None:
    """Join the probes of all shards of an evaluation; None unless every shard was probed."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    failed = next((part for part in known if any(check.passed is False for check in part.checks)), known[0])
    return Probes(
        sample=tuple(id_ for part in known for id_ in part.sample),
        broken={id_: found for part in known for id_, found in part.broken.items()},
        ran=tuple(dict.fromkeys(name for part in known for name in part.ran)),
        failed=tuple(dict.fromkeys(name for part in known for name in part.failed)),
        checks=failed.checks,
        misleading=failed.misleading,
        passes=sum(part.passes for part in known),
        seconds=sum(part.seconds for part in known),
    )


def probes_finding(level: str) -> str:
    """Return the name of the ledger's finding that holds the probes of ``level``."""
    return f"probes, {level}"


#: budgets of the probes by level, in units of the default budget
LEVELS = {"off": 0.0, "default": 1.0, "thorough": 8.0}


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """A lower bound of how much too high a robust accuracy is, as a share of all images.

    Attributes:
        value: estimate.
        interval: its 95 % interval.
        probed, broken: number of robust images that were probed, and of those that the probes broke.
        robust, n: number of robust images under the evaluation's attack, and of all images.
        by: number of images that each probe broke, in the order of the probes.
    """

    value: float
    interval: tuple[float, float]
    probed: int
    broken: int
    robust: int
    n: int
    by: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a robust accuracy.

    Attributes:
        verdict: "sound"; "weak" if stronger gradient attacks lower it by more than 2 points; "misled" if attacks that
            gradient attacks should dominate do so, or if the model's structure defeats gradients; None if nothing was
            probed.
        inflation: by how much the robust accuracy is too high; None if nothing was probed.
        bound: estimated upper bound of the robust accuracy, a fraction.
        reason: one sentence with the numbers.
        advice: what to do.
    """

    verdict: str | None
    inflation: Inflation | None
    bound: float | None
    reason: str
    advice: str

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a result's JSON form; the inflation is in percentage points."""
        inflation = None
        if self.inflation is not None:
            inflation = {
                **asdict(self.inflation),
                "value": 100 * self.inflation.value,
                "interval": [100 * end for end in self.inflation.interval],
            }
        return {
            "verdict": self.verdict,
            "inflation": inflation,
            "bound": self.bound,
            "verdict_reason": self.reason,
            "verdict_advice": self.advice,
        }

    def __str__(self) -> str:
        """Return the verdict in one line."""
        if self.verdict is None:
            return f"no verdict: {self.reason}"
        words = f"{self.verdict}: {self.reason}"
        if self.verdict != SOUND and self.inflation is not None and self.bound is not None:
            low, high = (100 * end for end in self.inflation.interval)
            words += (
                f"; the number is too high by {100 * self.inflation.value:.1f} [{low:.1f}, {high:.1f}] points or more, "
                f"robust accuracy is at most {100 * self.bound:.1f}"
            )
        return words


NOTHING = Verdict(
    verdict=None,
    inflation=None,
    bound=None,
    reason="no probes were run",
    advice="evaluate again with the probes, which run by default",
)


def share_interval(k: int, m: int, population: int) -> tuple[float, float]:
    """Return the 95 % interval of a share in a finite population, given ``k`` of ``m`` drawn without replacement.

    This is Wilson's interval with the finite population correction; it has no width if the whole population is drawn.
    """
    if m == population:
        return k / m, k / m
    effective = m * (population - 1) / (population - m)
    low, high = wilson(k / m * effective, effective)  # type: ignore[arg-type]
    return max(low, k / population), min(high, (population - m + k) / population)


def inflation_of(rows: Sequence[Row], sample: Collection[int], broken: Sequence[tuple[str, str]]) -> Inflation | None:
    """Estimate the inflation of a robust accuracy from the broken images of a sample; None without a sample.

    Args:
        sample: ids of the probed images.
        broken: name and kind of the probe for each broken image.
    """
    robust, n, m, k = sum(row.robust for row in rows), len(rows), len(sample), len(broken)
    if not rows or not m:
        return None
    low, high = share_interval(k, m, robust)
    by: dict[str, int] = {}
    for name, _ in broken:
        by[name] = by.get(name, 0) + 1
    share = robust / n
    return Inflation(
        value=share * k / m, interval=(share * low, share * high), probed=m, broken=k, robust=robust, n=n, by=by
    )


def verdict_of(rows: Sequence[Row], probes: Probes | None) -> Verdict:
    """Return the verdict that follows from the findings of the probes."""
    if probes is None:
        return NOTHING
    robust = sum(row.robust for row in rows)
    failed = [check for check in probes.checks if check.passed is False and check.name in probes.misleading]
    found = [probes.broken[id_] for id_ in probes.sample if id_ in probes.broken]
    total = inflation_of(rows, probes.sample, found)
    dominated = inflation_of(rows, probes.sample, [each for each in found if each[1] == DOMINATED])
    bound = None if total is None else max(0.0, robust / len(rows) - total.value)
    if failed:
        return Verdict(verdict=MISLED, inflation=total, bound=bound, reason=failed[0].found, advice=failed[0].advice)
    if total is None:
        return Verdict(
            verdict=SOUND if robust == 0 else None,
            inflation=None,
            bound=0.0 if robust == 0 else None,
            reason="no image is robust: there is nothing to probe" if robust == 0 else "no image was probed",
            advice="",
        )
    words = f"{total.broken} of {total.probed} images that the evaluation calls robust"
    best = ", ".join(f"{name} {count}" for name, count in total.by.items())
    surely = 0.0 if dominated is None else wilson(dominated.broken, dominated.probed)[0] * robust / len(rows)
    if surely > MAX_INFLATION:
        return Verdict(
            verdict=MISLED,
            inflation=total,
            bound=bound,
            reason=f"attacks that need no sound gradients break {words} ({best})",
            advice="the gradients mislead: make the model differentiable (BPDA), average over its randomness (EOT), or "
            "attack the network inside",
        )
    if total.interval[0] > MAX_INFLATION:
        return Verdict(
            verdict=WEAK,
            inflation=total,
            bound=bound,
            reason=f"stronger gradient attacks break {words} ({best})",
            advice="run a stronger attack: autoattack-standard, more steps and restarts, or the criterion worst",
        )
    return Verdict(
        verdict=SOUND, inflation=total, bound=bound, reason=f"{len(probes.ran)} probes break {words}", advice=""
    )


def verdicts_in_words(verdicts: Sequence[Verdict]) -> str:
    """Return a sentence with the number of sound, weak and misled verdicts, and the largest inflation among them."""
    counts = {name: sum(each.verdict == name for each in verdicts) for name in (SOUND, WEAK, MISLED)}
    if not any(counts.values()):
        return "Verdicts: none, no probes were run."
    inflated = [each.inflation.value for each in verdicts if each.verdict in (WEAK, MISLED) and each.inflation]
    most = f", too high by {100 * max(inflated):.1f} points at most by the probes" if inflated else ""
    return f"Verdicts: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}{most}."
