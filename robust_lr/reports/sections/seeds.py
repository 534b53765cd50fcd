"""Several seeds of the same evaluation: mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from ..blocks import Cell, Column, Section, Table, count_cell, text_cell
from ..collect import Found
from ..record import Report

FIGURES = {"clean": "clean", "robust": "robust", "worst-seen": "worst seen", "success": "success"}


def seeds(report: Report) -> Section | None:
    """One row for each model and protocol that was evaluated with more than one seed."""
    cells: dict[tuple[str, str, str], list[Found]] = {}
    for group in report.groups:
        for model, found in group.members.items():
            cells.setdefault((model, group.data, group.name), []).append(found)
    several = {key: found for key, found in cells.items() if len({each.seed for each in found}) > 1}
    if not several:
        return None
    rows = [
        [
            *map(text_cell, key),
            text_cell(kind(found)),
            count_cell(len(found)),
            *(spread([100 * (each.shares[name].value or 0.0) for each in found]) for name in FIGURES),
            count_cell(len(found[0].evaluation.rows)),
        ]
        for key, found in several.items()
    ]
    columns = [Column(heading, figures=False) for heading in ("model", "images", "protocol", "seeds of")]
    columns += [Column("seeds"), *(Column(heading, "%") for heading in FIGURES.values()), Column("n", "images each")]
    return Section(
        key="seeds",
        title="Seeds",
        text="Mean and sample standard deviation over seeds. Seeds of training also contain those of the attack; seeds "
        "of the attack alone say nothing about how much training runs differ.",
        blocks=[
            Table(
                key="seeds",
                title="Mean ± standard deviation",
                note="In %; each seed counts the same images.",
                columns=columns,
                rows=rows,
            )
        ],
    )


def kind(found: Sequence[Found]) -> str:
    """Tell whether the seeds are of networks trained anew or only of the attack."""
    weights = {each.record["weights_sha256"] for each in found}
    return "training and attack" if len(weights) == len(found) else "the attack"


def spread(values: Sequence[float]) -> Cell:
    return Cell(
        text=f"{mean(values):.1f} ± {stdev(values):.1f}",
        sort=mean(values),
    )
