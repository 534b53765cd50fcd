"""What speaks against a figure: the checks of each evaluation, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..blocks import Block, Cell, Column, Section, Table, count_cell, text_cell
from ..record import Report

MARKS = {True: ("pass", "good"), False: ("fail", "bad"), None: ("not seen", "muted")}


@dataclass(frozen=True)
class Verdict:
    """A verdict in words, and its tone."""

    text: str
    tone: str


def verdict(record: Mapping[str, Any]) -> Verdict:
    """The verdict of a result, or what its checks amount to."""
    failed = [check["name"] for check in record.get("validity", ()) if check["passed"] is False]
    tone = "bad" if failed else "good"
    if isinstance(record.get("verdict"), str):
        return Verdict(record["verdict"], tone)
    return Verdict(f"doubtful: {len(failed)} failed" if failed else "no check failed", tone)


def validity(report: Report) -> Section | None:
    """Verdicts and checks of every evaluation."""
    names = list(
        dict.fromkeys(check["name"] for found in report.evaluations for check in found.record.get("validity", ()))
    )
    if not names:
        return None
    blocks: list[Block] = [verdicts(report), checks(report, names)]
    return Section(
        key="validity",
        title="Validity",
        text="Signs of a broken evaluation that were looked for in the rows of each evaluation. A failed check means "
        "that the attack may be too weak, so that robust accuracy is an overestimate.",
        blocks=blocks,
    )


def verdicts(report: Report) -> Table:
    """One row per evaluation: the verdict, and what failed in words."""
    extra = [key for key in ("inflation", "bound") if any(key in found.record for found in report.evaluations)]
    rows = []
    for found in report.evaluations:
        judged = verdict(found.record)
        failed = [
            f"{check['name']}: {check['found']}" for check in found.record["validity"] if check["passed"] is False
        ]
        rows.append(
            [
                text_cell(report.labels[found.number]),
                text_cell(str(found.protocol["name"]), detail=report.data_label(found)),
                count_cell(found.seed),
                text_cell(judged.text, tone=judged.tone, rows=f"{found.number}:all"),
                *(words(found.record.get(key)) for key in extra),
                text_cell("; ".join(failed) or "-", tone="" if failed else "muted"),
            ]
        )
    headings = ("model", "protocol", "seed", "verdict", *extra, "what failed")
    return Table(
        key="verdicts",
        title="Verdicts",
        note="What failed names its own denominator.",
        columns=[Column(heading, figures=heading == "seed") for heading in headings],
        rows=rows,
    )


def checks(report: Report, names: Sequence[str]) -> Table:
    """One row per evaluation, one column per check."""
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
        note="Each check names its own denominator.",
        columns=[Column(heading, figures=False) for heading in ("model", "protocol", *names)],
        rows=rows,
        folded=True,
    )


def mark(check: Mapping[str, Any] | None) -> Cell:
    """Pass or fail, and what was found."""
    if check is None:
        return text_cell("-", tone="muted")
    text, tone = MARKS[check["passed"]]
    return text_cell(text, detail=str(check["found"]), tone=tone)


def words(value: Any) -> Cell:
    """A value of a result's JSON as a reader would write it."""
    if value is None:
        return text_cell("-", tone="muted")
    if isinstance(value, float):
        return Cell(text=f"{100 * value:.1f} %", sort=value)
    if isinstance(value, Mapping):
        return text_cell(", ".join(f"{key} {_plain(item)}" for key, item in value.items()))
    return text_cell(str(value))


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
