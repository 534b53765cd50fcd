"""What people see: tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .protocols import PGD
from .results import Proportion, Result


def result_table(result: Result, protocol: PGD) -> RichTable:
    """One result: accuracies and success with their intervals and denominators."""
    title = Text(f"{result.model} on {result.data}")
    table = RichTable(title=title, caption=str(protocol), box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("%", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("images", justify="right")
    among = "was not the target" if protocol.targeted else "was right"
    rows = {
        "clean accuracy": result.clean,
        "robust accuracy, last iterate": result.robust,
        "robust accuracy, worst seen": result.robust_worst_seen,
        f"success, where clean {among}": result.success,
    }
    for name, share in rows.items():
        table.add_row(name, value(share), interval(share), f"{share.count} / {share.n}")
    return table


def value(share: Proportion) -> str:
    return "-" if share.value is None else f"{100 * share.value:.1f}"


def interval(share: Proportion) -> str:
    low, high = share.interval
    return f"{100 * low:.1f}-{100 * high:.1f}"
