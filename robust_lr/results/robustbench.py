"""The entry of RobustBench's leaderboard that an evaluation makes: the JSON of its model_info folder."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ..utils.errors import InputError
from .stored import Evaluation

#: what only the authors know, in the order of the files
ABOUT = ("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture")

#: parts of AutoAttack "standard"
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")

#: threat models by the norm of the ball
THREATS = {"linf": "Linf", "l2": "L2"}


def model_info(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """All fields of a model_info file; accuracies are strings in percent.

    Args:
        evaluation: under AutoAttack "standard".
        about: the fields of ``ABOUT``, and ``reported``, the robust accuracy that the paper states, by default ours.

    Raises:
        InputError: an evaluation under another protocol, or on a shard of the images.
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
    robust = percent(record["robust_accuracy"])
    return {
        **{key: about[key] for key in ABOUT},
        "eps": eps_in_words(protocol["eps"], protocol["norm"]),
        "clean_acc": percent(record["clean_accuracy"]),
        "reported": about.get("reported") or robust,
        "autoattack_acc": robust,
    }


def percent(share: float) -> str:
    """0.5953 -> "59.53"."""
    return f"{100 * share:.2f}"


def eps_in_words(eps: float, norm: str) -> str:
    """0.0313... -> "8/255" in L-infinity, "0.5" in L2."""
    levels = Fraction(round(eps * 255 * 1000), 1000)
    if norm == "linf" and abs(float(levels) / 255 - eps) < 1e-9:
        return f"{float(levels):g}/255"
    return f"{eps:g}"
