"""What people see: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from . import protocols
from .protocols import PGD
from .results import Proportion, Result
from .table9 import REGIMES, Table


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


def table9(table: Table, results: Mapping[tuple[str, str, str], Result]) -> RichTable:
    """Accuracy on the true label: ours, its interval, and the paper's figure.

    Args:
        results: by (label, regime, protocol).
    """
    first = next(iter(results.values()))
    names = [*table.protocols]
    out = RichTable(
        title=f"Table 9 on {first.data}, {first.n} test images: top-1 accuracy in %",
        caption=(f"{protocols.get(names[0]).values_in_words()}; last iterate. The paper's figures are on ImageNet."),
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    for regime in reversed(REGIMES):
        for heading in ("clean", *(name.removeprefix("lrnet-") for name in names)):
            out.add_column(f"{regime[:3]}.\n{heading}", justify="right", no_wrap=True)
    for row in table.rows:
        cells = [
            cell(share, row.paper.get(("" if regime == "adversarial" else "regular-") + key))
            for regime in reversed(REGIMES)
            for key, share in shares(results, row.label, regime, names).items()
        ]
        names_of_lines = Text(f"{row.label}\n").append("95 %\n", style="dim").append("paper", style="italic")
        out.add_row(names_of_lines, *cells, end_section=True)
    return out


def shares(
    results: Mapping[tuple[str, str, str], Result], label: str, regime: str, names: list[str]
) -> dict[str, Proportion]:
    """The accuracies of a row's half, by column."""
    return {
        "clean": results[label, regime, names[0]].clean,
        **{name: results[label, regime, name].robust for name in names},
    }


def cell(share: Proportion, paper: float | None) -> Text:
    text = Text(f"{value(share)}\n", style="bold").append(interval(share), style="not bold dim")
    return text if paper is None else text.append(f"\n{paper:.1f}", style="not bold italic")
