"""The result of an evaluation: accuracies with intervals, and everything that they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.statistics import Proportion
from . import export
from .text import short_table
from .verdict import NOTHING, Verdict

if TYPE_CHECKING:
    from .ledger import Row
    from .validity import Check
    from .verdict import Inflation, Probes


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of evaluating one model under one protocol on one data set.

    Attributes:
        model, data: names of the model and of the data set.
        protocol: every value of the attack.
        n: number of images.
        attacked: number of images that were attacked; the clean prediction decided the others.
        seed: seed of starts and targets.
        shard: "i/n" if this is a shard of an evaluation, else None.
        clean: accuracy on the clean images.
        robust: accuracy under the protocol's criterion.
        robust_last: accuracy at the last iterate of every restart, as in the paper; None if images leave the attack at
            their first success.
        robust_worst_seen: proportion of images that are right when clean and at every iterate of every restart.
        success: proportion of successes in any restart under the protocol's criterion. Targeted: images predicted as
            the target, among those not so predicted when clean. Untargeted: misclassified images, among those
            classified correctly when clean.
        curve: (steps, proportions by name as in ``to_dict``) at each recorded step of the protocol.
        broken_by: number of images broken by each attack of a cascade.
        max_distance: largest |x_adv - x| in the protocol's norm, for pixels in [0, 1].
        batch_invariant: True if the rows do not depend on ``batch_size``, because every pass had the same number of
            images and all random numbers are keyed by image.
        hashes: SHA-256 of weights, images and, for a targeted attack, targets (lines "id target").
        versions: versions of the software.
        device: name of the device.
        precision: arithmetic of the attack; the original model always classifies the final images in fp32.
        model_output: position of the logits in the model's output: "logits", ".logits of ..." for an object, or
            "first of ..." for a tuple.
        logits_dtype: dtype of the model's logits; losses and margins are computed in float32.
        agreement: proportion of a sample with the same outcome under an fp32 attack; None for ``precision`` fp32.
        robust_rounded: accuracy on the final images rounded to 256 levels, as in a PNG, where an attack that needs
            fractions of a level fails; None if images were not saved.
        cycle_detection: "on" if an image's attack ends once its iterates repeat exactly, else "off: " and the reason.
        ended_at_cycles: number of images whose attack ended so; the remaining steps would give the same rows.
        randomness: for a random model, "passes" (number of passes per image, all of which must be right), "draws" ("by
            row" or "by pass"), "keyed" (whether draws are keyed by image), and "one_pass", the accuracy of a single
            pass over the final images, with its 95 % interval. None for a deterministic model.
        surrogate: name and weights hash of the network that gradients came from; None if it was the model itself.
        seconds: time of the attack, summed over images, without loading.
        forwards, backwards: number of forward and backward passes, summed over images, without padding.
        validity: checks of the rows for signs of a broken evaluation.
        origin: date (UTC), command and, in a git checkout, commit.
        read_from_ledger: number of images whose rows were read from a ledger instead of computed.
        judgment: verdict with inflation, bound, reason and advice.
        probes: findings of the probes by image.
        rows: the ledger's rows, one per image, ordered by id; not part of the JSON form.
    """

    model: str
    data: str
    protocol: dict[str, Any]
    n: int
    attacked: int
    seed: int
    shard: str | None
    clean: Proportion
    robust: Proportion
    robust_last: Proportion | None
    robust_worst_seen: Proportion
    success: Proportion
    curve: list[tuple[int, dict[str, Proportion]]]
    broken_by: dict[str, int]
    max_distance: float
    batch_invariant: bool
    hashes: dict[str, str]
    versions: dict[str, str]
    device: str
    precision: str
    logits_dtype: str
    model_output: str
    agreement: Proportion | None
    robust_rounded: Proportion | None
    cycle_detection: str
    ended_at_cycles: int
    seconds: float
    forwards: int
    backwards: int
    validity: tuple[Check, ...]
    origin: Mapping[str, str | None] = field(default_factory=dict, compare=False)
    read_from_ledger: int = field(default=0, compare=False)
    randomness: Mapping[str, Any] | None = None
    surrogate: Mapping[str, str] | None = None
    judgment: Verdict = NOTHING
    probes: Probes | None = field(default=None, repr=False, compare=False)
    rows: tuple[Row, ...] = field(default=(), repr=False, compare=False)

    @property
    def verdict(self) -> str | None:
        """ "sound", "weak" or "misled"; None if no probes were run. ``judgment`` has the reason."""
        return self.judgment.verdict

    @property
    def inflation(self) -> Inflation | None:
        return self.judgment.inflation

    @property
    def bound(self) -> float | None:
        return self.judgment.bound

    def __str__(self) -> str:
        return short_table(self)

    def to_csv(self, path: str | Path) -> None:
        """Write the per-image rows as CSV."""
        export.write_csv(path, export.records(self.rows))

    def to_dataframe(self) -> Any:
        """Return the per-image rows as a pandas data frame, or a polars one if pandas is not installed."""
        return export.dataframe(export.records(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with accuracies as fractions and intervals as [low, high]."""
        shares = {
            "clean_accuracy": self.clean,
            "robust_accuracy": self.robust,
            "robust_accuracy_last": self.robust_last,
            "robust_accuracy_worst_seen": self.robust_worst_seen,
            "attack_success": self.success,
            "robust_accuracy_rounded": self.robust_rounded,
            "precision_agreement": self.agreement,
        }
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in (
            "clean",
            "robust",
            "robust_last",
            "robust_worst_seen",
            "success",
            "agreement",
            "robust_rounded",
            "hashes",
            "rows",
            "judgment",
            "probes",
            "origin",
        ):
            del record[name]
        record["validity"] = [dataclasses.asdict(check) for check in self.validity]
        record["curve"] = [{"steps": steps, **figures(point)} for steps, point in self.curve]
        return {
            "schema": 2,
            **record,
            **self.origin,
            **self.judgment.to_json(),
            **figures({name: share for name, share in shares.items() if share is not None}),
            **{f"{name}_sha256": value for name, value in self.hashes.items()},
        }


def figures(shares: Mapping[str, Proportion]) -> dict[str, Any]:
    """Return the JSON form of proportions: fractions by name, with their intervals and denominators."""
    return {
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: list(share.interval) for name, share in shares.items()},
        "denominators": {name: share.n for name, share in shares.items()},
    }
