"""Export an evaluation as an entry of RobustBench's leaderboard, a JSON file in its model_info folder."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..protocols.presets import get
from ..utils.errors import InputError
from .stored import Evaluation
from .verdict import MISLED, SOUND

#: fields that only the authors know, in the order of RobustBench's files
ABOUT = ("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture")

#: parts of AutoAttack "standard"
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")

#: numbers of images that the leaderboards evaluate
IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}

#: threat models by the norm of the ball
THREATS = {"linf": "Linf", "l2": "L2"}


def model_info(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """Return all fields of a model_info file; accuracies are strings in percent.

    Args:
        evaluation: an evaluation under AutoAttack "standard".
        about: the fields of ``ABOUT``; optionally ``reported``, the robust accuracy in the authors' paper, by default
            the measured one, and ``allow_misled`` to export an evaluation with the verdict "misled".

    Raises:
        InputError: the evaluation has another protocol, is a shard, or has the verdict "misled".
    """
    protocol, record = evaluation.protocol, evaluation.record
    parts = tuple(part["name"] for part in protocol.get("parts", ()))
    if parts != PARTS or protocol["norm"] not in THREATS:
        raise InputError(
            f"{evaluation.folder} was evaluated under {protocol['name']!r}: RobustBench takes AutoAttack 'standard' in "
            "L-infinity or L2, e.g. protocol 'autoattack-standard'"
        )
    if record.get("shard") is not None:
        raise InputError(f"{evaluation.folder} is shard {record['shard']} of an evaluation: merge the shards first")
    if record.get("verdict") == MISLED and not about.get("allow_misled"):
        raise InputError(
            f"{evaluation.folder} is misled ({record['verdict_reason']}): its robust accuracy does not measure "
            f"robustness; to write the entry anyway, `allow` {MISLED!r}"
        )
    robust = percent(record["robust_accuracy"])
    return {
        **{key: about[key] for key in ABOUT},
        "eps": eps_in_words(protocol["eps"], protocol["norm"]),
        "clean_acc": percent(record["clean_accuracy"]),
        "reported": about.get("reported") or robust,
        "autoattack_acc": robust,
        **({"footnote": footnote(record)} if record.get("verdict") else {}),
    }


def find_reservations(evaluation: Evaluation, dataset: str) -> list[str]:
    """Return what keeps an evaluation under AutoAttack's parts from being an entry for ``dataset``, a line each."""
    protocol, n = evaluation.protocol, evaluation.record["n"]
    official = get("autoattack-standard" if protocol["norm"] == "linf" else "autoattack-standard-l2")
    found = []
    if dataset not in IMAGES:
        found.append(f"RobustBench has leaderboards for {', '.join(IMAGES)}, not for {dataset!r}")
    elif n != IMAGES[dataset]:
        found.append(f"the evaluation has {n:,} images, the leaderboard for {dataset} {IMAGES[dataset]:,}")
    for part, own in zip(official.at(protocol["eps"]).attacks(), protocol["parts"], strict=True):
        for key, value in part.values().items():
            if key not in ("name", "source") and own.get(key) != value:
                found.append(f"{own['name']} has {key} = {own.get(key)}, the official value is {value}")
    return found


def footnote(record: Mapping[str, Any]) -> str:
    """Return the footnote that the leaderboard shows below its table: the verdict on the robust accuracy."""
    words = f"robust-lr: {record['verdict']}, {record['verdict_reason']}"
    if record["verdict"] == SOUND or record.get("bound") is None:
        return words
    return f"{words}; robust accuracy is at most {percent(record['bound'])}"


def percent(share: float) -> str:
    """Format a fraction in percent: 0.5953 becomes "59.53"."""
    return f"{100 * share:.2f}"


def eps_in_words(eps: float, norm: str) -> str:
    """Format the radius of a ball: 0.0313... becomes "8/255" in L-infinity, 0.5 becomes "0.5" in L2."""
    levels = Fraction(round(eps * 255 * 1000), 1000)
    if norm == "linf" and abs(float(levels) / 255 - eps) < 1e-9:
        return f"{float(levels):g}/255"
    return f"{eps:g}"
