"""The evaluations' rows as compact JSON for the page, which shows the rows behind a number."""

from __future__ import annotations

import json
from typing import Any

from ..results.ledger import Row
from .collect import Found
from .record import Report

#: maximum number of characters of all rows together, which keeps a page below 5 MB
MAX_CHARACTERS = 1_500_000

#: columns in the page's order
COLUMNS = (
    "id",
    "label",
    "target",
    "clean",
    "adversarial",
    "robust",
    "robust_worst_seen",
    "success",
    "first_wrong",
    "margin",
    "broken_by",
)


def payload(report: Report) -> str:
    """Return the JSON of every evaluation with its rows, which are null once ``MAX_CHARACTERS`` are used up."""
    parts, used = [], 0
    for found in report.evaluations:
        about = json.dumps(describe_rows(found, report), ensure_ascii=False, separators=(",", ":"))
        rows = json.dumps(columns(found), ensure_ascii=False, separators=(",", ":"))
        used += len(rows)
        parts.append(f'{{"about":{about},"rows":{rows if used <= MAX_CHARACTERS else "null"}}}')
    # a "</script>" in a name must not end the element that contains this
    return ("[" + ",\n".join(parts) + "]").replace("<", "\\u003c")


def describe_rows(found: Found, report: Report) -> dict[str, Any]:
    return {
        "model": report.labels[found.number],
        "data": report.data_label(found),
        "protocol": str(found.protocol["name"]),
        "seed": found.seed,
        "targeted": bool(found.protocol.get("targeted", False)),
        "folder": found.folder.as_posix(),
        "n": len(found.evaluation.rows),
    }


def columns(found: Found) -> dict[str, list[Any]]:
    """Return the values by column, without empty columns."""
    out = {name: [value(row, name) for row in found.evaluation.rows] for name in COLUMNS}
    return {name: values for name, values in out.items() if any(each is not None for each in values)}


def value(row: Row, name: str) -> Any:
    found = getattr(row, name)
    if isinstance(found, bool):
        return int(found)
    return round(found, 3) if isinstance(found, float) else found
