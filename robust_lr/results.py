"""What an evaluation says: a frozen record with intervals, written as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .validity import Check

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, by default 95 %; (0, 1) when nothing was observed."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    center = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # at the ends the bound is p itself; rounding must not push it past
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


@dataclass(frozen=True)
class Proportion:
    """``count`` of ``n`` with its 95 % Wilson interval; ``value`` is None where n = 0."""

    count: int
    n: int

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.n)

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model under one protocol on one data set.

    Attributes:
        protocol: every value of the attack.
        n: images; ``attacked`` of them were attacked, the others decided by their clean predictions.
        clean: accuracy on the clean images.
        robust: accuracy on the true label under the protocol's criterion.
        robust_last: the same at the last iterate (of every restart), the paper's figure; None where decided images
            left the attack, so that last iterates are not known.
        robust_worst_seen: images right when clean *and* at every iterate of every restart.
        success: targeted: predicted as the target, among images not so predicted when clean; untargeted:
            misclassified, among images classified correctly when clean. Under the protocol's criterion, in any restart.
        curve: (steps, shares by name as in ``to_dict``) at each of the protocol's recorded steps.
        broken_by: images broken by each attack of a cascade.
        max_distance: largest |x_adv - x| found, in pixels of [0, 1] and in the norm of the protocol.
        batch_invariant: every pass behind a figure had the same number of rows and all randomness is keyed by image,
            so ``batch_size`` does not matter.
        hashes: SHA-256 of weights, images and, for a targeted attack, of "id target" lines.
        precision: of the attack's arithmetic; finished images are always judged in fp32, by the model as given.
        agreement: of verdicts with those of an fp32 attack, on a sample, where the precision is lower.
        seconds: time of the attack, summed over images, without loading.
        forwards, backwards: images x passes of the model that were really made, padding left out.
        validity: signs of a broken evaluation that were looked for in the rows.
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
    agreement: Proportion | None
    seconds: float
    forwards: int
    backwards: int
    validity: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; accuracies are fractions, intervals [low, high]."""
        shares = {
            "clean_accuracy": self.clean,
            "robust_accuracy": self.robust,
            "robust_accuracy_last": self.robust_last,
            "robust_accuracy_worst_seen": self.robust_worst_seen,
            "attack_success": self.success,
            "precision_agreement": self.agreement,
        }
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("clean", "robust", "robust_last", "robust_worst_seen", "success", "agreement", "hashes"):
            del record[name]
        record["validity"] = [dataclasses.asdict(check) for check in self.validity]
        record["curve"] = [{"steps": steps, **figures(point)} for steps, point in self.curve]
        return {
            "schema": 2,
            **record,
            **figures({name: share for name, share in shares.items() if share is not None}),
            **{f"{name}_sha256": value for name, value in self.hashes.items()},
        }


def figures(shares: Mapping[str, Proportion]) -> dict[str, Any]:
    """Shares as they are written in JSON: fractions, and intervals [low, high] and denominators by name."""
    return {
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: list(share.interval) for name, share in shares.items()},
        "denominators": {name: share.n for name, share in shares.items()},
    }


def write_json(path: Path, record: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Temporary file beside ``path``, fsync, rename. The mode is that of the old file, else as the umask says.

    Raises:
        OSError: names ``path``.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # else the message stands alone
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
