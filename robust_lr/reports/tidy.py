"""Write a report as one tidy CSV: a line for each accuracy and each paired difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from math import isnan
from typing import Any

from .record import Report
from .sections.validity import verdict

COLUMNS = (
    "kind",
    "figure",
    "model",
    "other",
    "data",
    "protocol",
    "eps",
    "seed",
    "value",
    "low",
    "high",
    "count",
    "n",
    "p",
    "p_holm",
    "verdict",
    "weights_sha256",
    "folder",
)


def tidy(report: Report) -> str:
    """Return CSV with the columns ``COLUMNS``; accuracies and differences are fractions, other fields may be empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(shares(report))
    writer.writerows(differences(report))
    return text.getvalue()


def shares(report: Report) -> Iterator[dict[str, Any]]:
    for found in report.evaluations:
        for name, share in found.shares.items():
            low, high = share.interval
            yield {
                "kind": "share",
                "figure": name,
                "model": report.labels[found.number],
                "data": report.data_label(found),
                "protocol": found.protocol["name"],
                "eps": found.protocol.get("eps", ""),
                "seed": found.seed,
                "value": "" if share.value is None else share.value,
                "low": low,
                "high": high,
                "count": share.count,
                "n": share.n,
                "verdict": verdict(found.record).text,
                "weights_sha256": found.record["weights_sha256"],
                "folder": found.folder.as_posix(),
            }


def differences(report: Report) -> Iterator[dict[str, Any]]:
    for group in report.groups:
        for pair in group.pairs:
            yield {
                "kind": "difference",
                "figure": pair.figure,
                "model": pair.first,
                "other": pair.second,
                "data": group.data,
                "protocol": group.name,
                "eps": group.protocol.get("eps", ""),
                "seed": group.seed,
                "value": pair.difference,
                "low": pair.interval[0],
                "high": pair.interval[1],
                "n": group.n,
                "p": "" if isnan(pair.p) else pair.p,
                "p_holm": "" if isnan(pair.p_holm) else pair.p_holm,
            }
