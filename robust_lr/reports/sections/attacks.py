"""The sections on cascades, with the images that each attack broke, and on cost."""

from __future__ import annotations

from collections import Counter

from ...utils.statistics import Proportion
from ..blocks import Block, Cell, Column, Plot, Point, Section, Series, Table, count_cell, share_cell, text_cell
from ..record import Group, Report


def cascades(report: Report) -> Section | None:
    """Return the section on how many images each attack of a cascade broke; None without cascades."""
    blocks: list[Block] = []
    for number, group in enumerate(report.groups, start=1):
        if "parts" in group.protocol:
            blocks += cascade(group, number)
    if not blocks:
        return None
    return Section(
        key="cascades",
        title="Cascades",
        text="Each attack of a cascade runs on the images that withstood those before it, so a later attack breaks "
        "few images if an earlier one was strong. The denominator is all images.",
        blocks=blocks,
    )


def cascade(group: Group, number: int) -> list[Block]:
    parts = [str(part["name"]) for part in group.protocol["parts"]]
    outcomes = ["wrong when clean", *parts, "robust"]
    counts = {}
    for model, found in group.members.items():
        rows = found.evaluation.rows
        broken = Counter(row.broken_by for row in rows if row.broken_by is not None)
        clean = sum(row.clean != row.label for row in rows)
        counts[model] = [clean, *(broken[part] for part in parts), sum(row.robust for row in rows)]
    filters = ["wrong", *(f"part:{part}" for part in parts), "robust"]
    rows_of_table = [
        [
            text_cell(model),
            *(
                share_cell(Proportion(count, group.n), f"{group.members[model].number}:{name}")
                for count, name in zip(counts[model], filters, strict=True)
            ),
            count_cell(group.n),
        ]
        for model in group.members
    ]
    series = [
        Series(
            outcome,
            [
                Point(counts[model][at] / group.n, float(row), 0.0, 0.0, f"{model}, {outcome}: {counts[model][at]:,}")
                for row, model in enumerate(group.members)
            ],
        )
        for at, outcome in enumerate(outcomes)
    ]
    return [
        Plot(
            key=f"cascade-{number}",
            kind="bars",
            title=f"{group.name}: fate of the images",
            summary=" ".join(
                f"{model}: "
                + ", ".join(f"{outcome} {count:,}" for outcome, count in zip(outcomes, counts[model], strict=True))
                + "."
                for model in group.members
            ),
            x_label=f"share of images; n = {group.n:,}",
            y_label="",
            series=series,
            ticks=[(float(row), model) for row, model in enumerate(group.members)],
        ),
        Table(
            key=f"cascade-{number}",
            title=f"{group.name} on {group.data}, seed {group.seed}",
            note="In % of all images with 95 % Wilson intervals.",
            columns=[
                Column("model", figures=False),
                *(Column(outcome, "broken" if outcome in parts else "") for outcome in outcomes),
                Column("n", "images"),
            ],
            rows=rows_of_table,
        ),
    ]


def cost(report: Report) -> Section | None:
    """Return the section on the passes and the time of every evaluation."""
    rows = []
    for found in report.evaluations:
        record, n = found.record, len(found.evaluation.rows)
        forwards, backwards = int(record["forwards"]), int(record["backwards"])
        rows.append(
            [
                text_cell(report.labels[found.number]),
                text_cell(str(found.protocol["name"]), detail=report.data_label(found)),
                count_cell(found.seed),
                count_cell(n),
                count_cell(forwards, f"{found.number}:all"),
                count_cell(backwards),
                Cell(text=f"{(forwards + backwards) / n:.1f}", sort=(forwards + backwards) / n),
                Cell(text=f"{record['seconds']:.1f}", sort=float(record["seconds"])),
                Cell(text=f"{1000 * record['seconds'] / n:.2f}", sort=record["seconds"] / n),
                text_cell(str(record["device"])),
            ]
        )
    columns = [
        Column("model", figures=False),
        Column("protocol", figures=False),
        Column("seed"),
        Column("n", "images"),
        Column("forward", "images x passes"),
        Column("backward", "images x passes"),
        Column("passes", "per image"),
        Column("seconds"),
        Column("ms", "per image"),
        Column("device", figures=False),
    ]
    return Section(
        key="cost",
        title="Cost",
        text="Computed passes of the model, summed over images, without padding; time of the attack without loading.",
        blocks=[
            Table(
                key="cost",
                title="Passes and time",
                note="Sums over all images of an evaluation.",
                columns=columns,
                rows=rows,
            )
        ],
    )
