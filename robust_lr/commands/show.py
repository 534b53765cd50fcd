"""``robust-lr show``: show finished evaluations in the terminal; needs neither the model nor the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .terminal import console, say

if TYPE_CHECKING:
    from ..reports.blocks import Table
    from ..reports.collect import Found


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def show(run: Path) -> None:
    """Show the accuracies, curve, checks and verdict of an evaluation.

    RUN is a folder that `robust-lr attack` or `robust-lr suite` wrote. Several evaluations are shown as a table of
    models and protocols.
    """
    from ..reports.record import build
    from ..reports.sections.comparison import comparison
    from ..reports.sections.curves import curves
    from ..reports.sections.headline import headline
    from ..reports.sections.seeds import seeds
    from ..reports.sections.validity import reasons, validity, verdict
    from ..results.validity import Check
    from .report import check_table

    record = build([run])
    for folder, done, total in record.collection.unfinished:
        say(f"{folder} is not finished: {done:,} of {total:,} images")
    alone = record.evaluations[0] if len(record.evaluations) == 1 else None
    if alone is not None:
        console.print(figures(alone))
        console.print(check_table("validity", [Check(**check) for check in alone.record["validity"]]))
        say(f"verdict: {'; '.join(filter(None, (verdict(alone.record).text, reasons(alone.record))))}")
    sections = [curves] if alone is not None else [headline, comparison, seeds, curves, validity]
    for section in filter(None, (make(record) for make in sections)):
        for table in section.tables:
            if not table.folded or section.key == "curves":
                console.print(terminal_table(table))


def figures(found: Found) -> RichTable:
    """Return a table with one line per accuracy, with its interval and denominator."""
    from ..reports.record import describe
    from ..utils.statistics import format_interval, format_value

    title = Text(f"{found.model} on {found.record['data']}, seed {found.seed}")
    table = RichTable(title=title, caption=Text(describe(found.protocol)), box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("%", "95 % interval", "images"):
        table.add_column(heading, justify="right")
    for name, share in found.shares.items():
        table.add_row(WORDS[name], format_value(share), format_interval(share), f"{share.count} / {share.n}")
    return table


WORDS = {
    "clean": "clean accuracy",
    "robust": "robust accuracy, by the protocol's criterion",
    "worst-seen": "robust accuracy, worst seen",
    "success": "success of the attack",
}


def terminal_table(table: Table) -> RichTable:
    """Convert a table of a report to a table for the terminal."""
    out = RichTable(title=Text(table.title), caption=Text(table.note), box=box.SIMPLE_HEAD, title_justify="left")
    for column in table.columns:
        heading = Text("\n".join(filter(None, (column.heading, column.detail))))
        out.add_column(heading, justify="right" if column.figures else "left", no_wrap=column.figures)
    for row in table.rows:
        cells = []
        for cell in row:
            text = Text(cell.text, style="bold" if cell.strong else "bold red" if cell.tone == "bad" else "")
            cells.append(text.append(f"\n{cell.detail}", style="not bold dim") if cell.detail else text)
        out.add_row(*cells)
    return out
