"""The section on evaluations with several seeds: mean, standard deviation, and differences over training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import mean, stdev

from ...results.compare_groups import METHODS, Difference, compare_runs
from ...utils.errors import InputError
from ..blocks import Cell, Column, Section, Table, count_cell, number_cell, text_cell
from ..collect import Found
from ..record import Report

LEVEL = 0.05
TRAINING = "training and attack"
FIGURES = {"clean": "clean", "robust": "robust", "worst-seen": "worst seen", "success": "success"}


def seeds(report: Report) -> Section | None:
    """Return the section with a row for each model and protocol with several seeds; None without any."""
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
            *(mean_and_deviation([100 * (each.shares[name].value or 0.0) for each in found]) for name in FIGURES),
            count_cell(len(found[0].evaluation.rows)),
        ]
        for key, found in several.items()
    ]
    columns = [Column(heading, figures=False) for heading in ("model", "images", "protocol", "seeds of")]
    columns += [Column("seeds"), *(Column(heading, "%") for heading in FIGURES.values()), Column("n", "images each")]
    return Section(
        key="seeds",
        title="Seeds",
        text="Mean and sample standard deviation over seeds. Seeds of training and attack vary both; seeds of the "
        "attack alone do not show how much training runs differ.",
        blocks=[
            Table(
                key="seeds",
                title="Mean ± standard deviation",
                note="In %; every seed has the same images.",
                columns=columns,
                rows=rows,
            ),
            *differences(several),
        ],
    )


def differences(several: Mapping[tuple[str, str, str], Sequence[Found]]) -> list[Table]:
    """Return a table of differences over training runs and images, for networks that were trained several times."""
    arms: dict[tuple[str, str], dict[str, list[Found]]] = {}
    for (model, data, protocol), found in several.items():
        if kind(found) == TRAINING:
            arms.setdefault((data, protocol), {})[model] = sorted(found, key=lambda each: each.seed)
    rows = [
        row(data, protocol, difference)
        for (data, protocol), members in arms.items()
        for difference in compare_training_runs(members)
    ]
    if not rows:
        return []
    columns = [Column(heading, figures=False) for heading in ("images", "protocol", "first", "second")]
    columns += [Column("difference", "points"), Column("p"), Column("p", "Holm"), Column("runs", "each")]
    note = f"Robust accuracy of the first minus that of the second. Interval: {METHODS['interval']}. p-values: "
    note += f"{METHODS['p']}; {METHODS['p_holm']}. Bold: p < {LEVEL} after correction."
    return [Table(key="training-runs", title="Differences over training runs", note=note, columns=columns, rows=rows)]


def compare_training_runs(members: Mapping[str, Sequence[Found]]) -> list[Difference]:
    """Compare the robust accuracy of networks with the same seeds; empty if their runs cannot be compared."""
    if len(members) < 2 or len({tuple(each.seed for each in found) for found in members.values()}) > 1:
        return []
    try:
        found = compare_runs({name: [each.evaluation for each in runs] for name, runs in members.items()})
    except InputError:  # protocols or images differ under one name, which the paired differences report
        return []
    return found.differences_in("robust")


def row(data: str, protocol: str, difference: Difference) -> list[Cell]:
    estimate = difference.estimate
    low, high = estimate.interval
    significant = difference.p_holm < LEVEL
    return [
        *map(text_cell, (data, protocol, difference.first, difference.second)),
        Cell(
            text=f"{100 * estimate.value:+.1f}",
            detail=f"[{100 * low:+.1f}, {100 * high:+.1f}]",
            sort=estimate.value,
            strong=significant,
        ),
        number_cell(estimate.p, f"{estimate.p:.2g}"),
        number_cell(
            2.0 if isnan(difference.p_holm) else difference.p_holm,
            "-" if isnan(difference.p_holm) else f"{difference.p_holm:.2g}",
            strong=significant,
        ),
        count_cell(estimate.runs),
    ]


def kind(found: Sequence[Found]) -> str:
    """Return whether seeds differ in training and attack, or in the attack alone, in words."""
    weights = {each.record["weights_sha256"] for each in found}
    return TRAINING if len(weights) == len(found) else "the attack"


def mean_and_deviation(values: Sequence[float]) -> Cell:
    return Cell(
        text=f"{mean(values):.1f} ± {stdev(values):.1f}",
        sort=mean(values),
    )
