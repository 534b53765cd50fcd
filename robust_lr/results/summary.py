"""Summarize the rows of a ledger as a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..protocols.base import Protocol
from ..utils.provenance import versions
from ..utils.statistics import Proportion
from .ledger import Row
from .result import Result
from .targets import targets_hash as hash_of_pairs
from .validity import validity
from .verdict import Probes, verdict_of


def summarize(
    rows: Sequence[Row],
    protocol: Protocol,
    *,
    hashes: dict[str, str],
    probes: Probes | None = None,
    randomness: Mapping[str, Any] | None = None,
    **about: Any,
) -> Result:
    """Return the result of an evaluation, computed from its rows.

    Args:
        hashes: SHA-256 of weights and images.
        randomness: the fields of ``Result.randomness`` except those computed here.
        about: the other fields of ``Result``.
    """
    robust = Proportion(sum(row.robust for row in rows), len(rows))
    end = shares_at(rows, protocol)
    return Result(
        protocol=protocol.values(),
        n=len(rows),
        attacked=len(rows) if protocol.criterion == "last" else end["attack_success"].n,
        clean=Proportion(sum(row.clean == row.label for row in rows), len(rows)),
        robust=robust,
        robust_last=end.get("robust_accuracy_last"),
        robust_worst_seen=end["robust_accuracy_worst_seen"],
        success=end["attack_success"],
        curve=[(steps, shares_at(rows, protocol, number)) for number, steps in enumerate(protocol.record)],
        broken_by=dict(Counter(row.broken_by for row in rows if row.broken_by is not None)),
        max_distance=max(row.distance for row in rows),
        hashes={**hashes, **targets_hash(rows)},
        versions=versions(),
        robust_rounded=rounded_accuracy(rows),
        ended_at_cycles=sum(row.steps_skipped > 0 for row in rows),
        seconds=sum(row.seconds for row in rows),
        forwards=sum(row.forwards for row in rows),
        backwards=sum(row.backwards for row in rows),
        validity=(*validity(rows, protocol), *(() if probes is None else probes.checks)),
        randomness=None if randomness is None else {**randomness, **one_pass(rows, randomness["passes"])},
        judgment=verdict_of(rows, probes),
        probes=probes,
        rows=tuple(rows),
        **about,
    )


def one_pass(rows: Sequence[Row], passes: int) -> dict[str, Any]:
    """Return the accuracy of a random model in one pass over the final images, and its 95 % interval.

    The interval covers the model's randomness for these images, with independent draws: an image that is misclassified
    with probability p adds p (1 - p) to the variance of the number of errors.
    """
    shares = [(row.wrong_passes or 0) / passes for row in rows]
    variance = sum(share * (1 - share) for share in shares) * passes / max(passes - 1, 1)
    value, spread = 1 - sum(shares) / len(rows), 1.96 * variance**0.5 / len(rows)
    return {"one_pass": value, "one_pass_interval": [max(value - spread, 0.0), min(value + spread, 1.0)]}


def rounded_accuracy(rows: Sequence[Row]) -> Proportion | None:
    """Return the accuracy on the final images rounded to 256 levels; None if images were not saved."""
    if any(row.robust_rounded is None for row in rows):
        return None
    return Proportion(sum(bool(row.robust_rounded) for row in rows), len(rows))


def shares_at(rows: Sequence[Row], protocol: Protocol, number: int | None = None) -> dict[str, Proportion]:
    """Return the accuracies and the success of an attack at its end, or at its recorded step ``number``.

    The accuracy at the last iterate is left out if images leave the attack at their first success. The denominator of
    the success is the number of images whose clean prediction was not already a success.
    """
    last = protocol.criterion == "last"
    aim = "t" if protocol.targeted else "w"

    def robust(row: Row) -> bool:
        return row.robust if number is None else row.record[number] == "r"

    def success(row: Row) -> bool:
        if number is None:
            return row.success
        return row.record[number] == aim if last else within(row.first_success, protocol.record[number])

    def seen(row: Row) -> bool:
        return row.robust_worst_seen if number is None else not within(row.first_wrong, protocol.record[number])

    among = [row for row in rows if (row.clean != row.target if protocol.targeted else row.clean == row.label)]
    return {
        **({"robust_accuracy_last": Proportion(sum(map(robust, rows)), len(rows))} if last else {}),
        "robust_accuracy_worst_seen": Proportion(sum(map(seen, rows)), len(rows)),
        "attack_success": Proportion(sum(map(success, among)), len(among)),
    }


def within(step: int | None, steps: int) -> bool:
    """Return True if an event at ``step`` (None: never) happens within ``steps``."""
    return step is not None and step <= steps


def targets_hash(rows: Sequence[Row]) -> dict[str, str]:
    """Return the hash of the images' targets under the key "targets"; empty without targets."""
    pairs = [(row.id, row.target) for row in rows if row.target is not None]
    return {"targets": hash_of_pairs(pairs)} if pairs else {}
