"""The section on validity: the verdict and the checks of each evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..blocks import Block, Cell, Column, Section, Table, count_cell, text_cell
from ..record import Report

#: the only verdict that supports a robust accuracy
SOUND = "sound"

MARKS = {True: ("pass", "good"), False: ("fail", "bad"), None: ("not seen", "muted")}


@dataclass(frozen=True)
class Verdict:
    """A verdict in words, and its tone."""

    text: str
    tone: str


def verdict(record: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a result in words; without a verdict, the outcome of its checks."""
    failed = [check["name"] for check in record.get("validity", ()) if check["passed"] is False]
    said = record.get("verdict")
    if isinstance(said, str):
        high = points(record.get("inflation"))
        return Verdict(
            said if said == SOUND or not high else f"{said}: {high} too high", "" if said == SOUND else "bad"
        )
    if failed:
        return Verdict(f"doubtful: {len(failed)} check{'s' * (len(failed) > 1)} failed", "bad")
    return Verdict("no check failed", "")


def points(inflation: Any) -> str:
    """Return the points by which a robust accuracy is at least too high; "" if that was not measured."""
    if not isinstance(inflation, Mapping) or "value" not in inflation:
        return ""
    low, high = inflation.get("interval", (inflation["value"], inflation["value"]))
    return f"{inflation['value']:.1f} points [{low:.1f}, {high:.1f}]"


def validity(report: Report) -> Section | None:
    """Return the section with the verdict and the checks of every evaluation; None without checks."""
    names = list(
        dict.fromkeys(check["name"] for found in report.evaluations for check in found.record.get("validity", ()))
    )
    if not names:
        return None
    blocks: list[Block] = [verdicts(report), checks(report, names)]
    return Section(
        key="validity",
        title="Validity",
        text="Checks for signs of a broken evaluation in the rows of each evaluation. A failed check means "
        "that the attack may be too weak, so that robust accuracy is an overestimate.",
        blocks=blocks,
    )


def verdicts(report: Report) -> Table:
    """Return a table with one row per evaluation: the verdict, its reasons and advice."""
    probed = any(found.record.get("verdict") for found in report.evaluations)
    rows = []
    for found in report.evaluations:
        judged = verdict(found.record)
        rows.append(
            [
                text_cell(report.labels[found.number]),
                text_cell(str(found.protocol["name"]), detail=report.data_label(found)),
                count_cell(found.seed),
                text_cell(judged.text, tone=judged.tone or "good", rows=f"{found.number}:all"),
                *((inflation(found.record), bound(found.record)) if probed else ()),
                text_cell(reasons(found.record) or "-"),
            ]
        )
    headings = [Column("model", figures=False), Column("protocol", figures=False), Column("seed")]
    headings += [Column("verdict", figures=False)]
    headings += [Column("inflation", "points, at least"), Column("bound", "robust, at most, %")] if probed else []
    return Table(
        key="verdicts",
        title="Verdicts",
        note="Reasons name their own denominators."
        + " Inflation: how much too high the robust accuracy is, estimated by probing a sample." * probed,
        columns=[*headings, Column("reasons and advice", figures=False)],
        rows=rows,
    )


def reasons(record: Mapping[str, Any]) -> str:
    """Return the reason for the verdict, the failed checks, and the advice, in words."""
    keys = ("verdict_reason", "verdict_advice") if record.get("verdict") else ()
    said = [str(record[key]) for key in keys if record.get(key)]
    for check in record.get("validity", ()):
        if check["passed"] is False:
            said.append(": ".join(filter(None, (f"{check['name']}: {check['found']}", check.get("advice")))))
    return "; ".join(said)


def inflation(record: Mapping[str, Any]) -> Cell:
    found = record.get("inflation")
    text, _, interval = points(found).partition(" points ")
    return Cell(text=text, detail=interval, sort=float(found["value"])) if text and found else text_cell("-")


def bound(record: Mapping[str, Any]) -> Cell:
    found = record.get("bound")
    return text_cell("-") if found is None else Cell(text=f"{100 * found:.1f}", sort=float(found))


def checks(report: Report, names: Sequence[str]) -> Table:
    """Return a table with one row per evaluation and one column per check."""
    rows = []
    for found in report.evaluations:
        looked = {check["name"]: check for check in found.record.get("validity", ())}
        rows.append(
            [
                text_cell(report.labels[found.number]),
                text_cell(str(found.protocol["name"]), detail=f"{report.data_label(found)}, seed {found.seed}"),
                *(mark(looked.get(name)) for name in names),
            ]
        )
    return Table(
        key="checks",
        title="Every check of every evaluation",
        note="Each check states its own denominator.",
        columns=[Column(heading, figures=False) for heading in ("model", "protocol", *names)],
        rows=rows,
        folded=True,
    )


def mark(check: Mapping[str, Any] | None) -> Cell:
    """Return a cell with the outcome of a check and its finding."""
    if check is None:
        return text_cell("-", tone="muted")
    text, tone = MARKS[check["passed"]]
    return text_cell(text, detail=str(check["found"]), tone=tone)
