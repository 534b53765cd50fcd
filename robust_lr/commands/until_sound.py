"""Show what a ladder of stronger and stronger attacks found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import console, say

if TYPE_CHECKING:
    from ..evaluation.strengthen import Strengthened


def show_ladder(found: Strengthened) -> None:
    """Print one line for each attack, and the number after the last."""
    table = Table(title=Text("until sound"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("attack", overflow="fold")
    for heading in ("images", "broken", "passes"):
        table.add_column(heading, justify="right")
    table.add_column("verdict after it")
    first = found.first
    table.add_row(
        str(first.protocol["name"]), f"{first.n:,}", f"{first.n - first.robust.count:,}", "", first.verdict or "-"
    )
    for rung in found.rungs:
        table.add_row(rung.protocol, f"{rung.images:,}", f"{rung.broken:,}", f"{rung.passes:,}", rung.verdict or "-")
    console.print(table)
    say(f"robust accuracy {found.robust} after {len(found.rungs) + 1} attacks, {found.verdict}: {found.ended}")
    say(f"{found.passes:,} of {found.budget:,} passes of the budget were made")
