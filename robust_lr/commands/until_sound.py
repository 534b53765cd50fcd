"""Show the results of a sequence of increasingly strong attacks (``--until-sound``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import console, say

if TYPE_CHECKING:
    from ..evaluation.strengthen import Strengthened


def show_ladder(found: Strengthened) -> None:
    """Print one line for each attack, and the robust accuracy after the last."""
    table = Table(title=Text("until sound"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("attack", overflow="fold")
    for heading in ("images", "broken", "passes"):
        table.add_column(heading, justify="right")
    table.add_column("verdict afterwards")
    first = found.first
    table.add_row(
        str(first.protocol["name"]), f"{first.n:,}", f"{first.n - first.robust.count:,}", "", first.verdict or "-"
    )
    for rung in found.rungs:
        table.add_row(rung.protocol, f"{rung.images:,}", f"{rung.broken:,}", f"{rung.passes:,}", rung.verdict or "-")
    console.print(table)
    say(f"robust accuracy {found.robust} after {len(found.rungs) + 1} attacks, {found.verdict}: {found.ended}")
    say(f"{found.passes:,} of the budget of {found.budget:,} passes were used")
