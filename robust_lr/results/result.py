"""The result of an evaluation: a frozen record with intervals, written as JSON."""

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
    """One model under one protocol on one data set.

    Attributes:
        protocol: every value of the attack.
        n: number of images; ``attacked`` of them were attacked, clean predictions decided the others.
        clean: accuracy on the clean images.
        robust: accuracy on the true label under the protocol's criterion.
        robust_last: the same at the last iterate (of every restart), the paper's figure; None where decided images
            left the attack, so that last iterates are not known.
        robust_worst_seen: images right when clean *and* at every iterate of every restart.
        success: targeted: predicted as the target, among images not so predicted when clean; untargeted:
            misclassified, among images classified correctly when clean. Under the protocol's criterion, in any restart.
        curve: (steps, shares by name as in ``to_dict``) at each of the protocol's recorded steps.
        broken_by: number of images that each attack of a cascade broke.
        max_distance: largest |x_adv - x| found, in pixels of [0, 1] and in the norm of the protocol.
        batch_invariant: every pass behind a figure had the same number of rows and all randomness is keyed by image,
            so ``batch_size`` does not matter.
        hashes: SHA-256 of weights, images and, for a targeted attack, of "id target" lines.
        precision: arithmetic of the attack; finished images are always judged in fp32, by the model as given.
        model_output: where the model's output held the logits: "logits" alone, ".logits of ..." an object, or
            "first of ..." a tuple.
        logits_dtype: dtype that the model computed its logits in; losses and verdicts are in float32.
        agreement: share of a sample with the verdict of an fp32 attack, if the precision is lower.
        robust_rounded: images right on the finished image after its pixels are rounded to 256 levels: an attack that
            lives in the fractions of a level is lost in a PNG. None where images were not kept.
        cycle_detection: "on" if images whose iterates repeated exactly ended early, else "off: " and the reason.
        ended_at_cycles: number of images that skipped steps for this reason; all steps would give the same rows.
        randomness: for a random model, the "passes" behind each verdict, all of which must be right; the "draws", by
            row or by pass; whether they are "keyed" by image; and "one_pass", the accuracy of a single pass over the
            finished images, with its 95 % interval. None for a deterministic model.
        surrogate: name and hash of the weights of the network that gradients came from, if it was another one.
        seconds: time of the attack, summed over images, without loading.
        forwards, backwards: images x passes of the model that were actually computed, without padding.
        verdict: "sound", "weak", "misled", or None if no probes were run; ``judgment`` has the reason.
        origin: date (UTC), command and, in a checkout, commit of the computation.
        read_from_ledger: number of images whose rows were read from a ledger instead of computed.
        judgment: the verdict with inflation, bound, reason and advice.
        probes: findings of the probes, image by image.
        validity: checks of the rows for signs of a broken evaluation.
        rows: the ledger's rows, one per image, by id; they are not part of the JSON form.
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
        """Return the per-image rows as a data frame of pandas or, where that is missing, of polars."""
        return export.dataframe(export.records(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: accuracies as fractions, intervals as [low, high]."""
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
    """Return the JSON form of shares: fractions by name, with their intervals and denominators."""
    return {
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: list(share.interval) for name, share in shares.items()},
        "denominators": {name: share.n for name, share in shares.items()},
    }
