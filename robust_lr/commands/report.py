"""What people see: tables for the terminal, and curves as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..protocols.base import Protocol
from ..results.curve import Curve
from ..results.result import Result
from ..results.validity import Check
from ..utils.errors import InputError
from ..utils.statistics import interval, value

LAST, SEEN, SUCCESS = "robust_accuracy_last", "robust_accuracy_worst_seen", "attack_success"


def result_table(result: Result, protocol: Protocol) -> RichTable:
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
        "robust accuracy, last iterate": result.robust_last,
        "robust accuracy, worst seen": result.robust_worst_seen,
        f"success, where clean {among}": result.success,
        f"verdicts as with fp32, {result.precision}": result.agreement,
    }
    for name, share in rows.items():
        if share is not None:
            table.add_row(name, value(share), interval(share), f"{share.count} / {share.n}")
    for name, count in result.broken_by.items():
        if len(result.broken_by) > 1:
            table.add_row(f"broken by {name}", "", "", str(count))
    return table


def check_table(title: str, checks: Sequence[Check]) -> RichTable:
    """One line a check."""
    table = RichTable(title=Text(title), box=box.SIMPLE, show_header=False, title_justify="left")
    for options in ({"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**options)
    for check in checks:
        found = f"{check.found}: {check.advice}" if check.advice else check.found
        mark = Text("-") if check.passed is None else Text("pass") if check.passed else Text("FAIL", style="bold red")
        table.add_row(mark, check.name, Text(found, style="dim"))
    return table


def curve_table(curve: Curve) -> RichTable:
    """Figures in % by a value that grows, with their 95 % intervals."""
    axis, points, first = curve.axis, curve.points, curve.results[0]
    table = RichTable(title=Text(f"{first.model} on {first.data}, {curve.name}"), box=box.SIMPLE_HEAD)
    names = {LAST: "robust, last iterate", SEEN: "robust, worst seen", SUCCESS: "success"}
    shown = {name: heading for name, heading in names.items() if any(name in shares for _, shares in points)}
    for heading in (axis, *shown.values()):
        table.add_column(heading, justify="right")
    for at, shares in points:
        cells = (f"{value(shares[name])} ({interval(shares[name])})" if name in shares else "-" for name in shown)
        table.add_row(label(axis, at), *cells)
    return table


def curve_picture(curve: Curve, path: Path) -> None:
    """Accuracy by the sweep's value as a PNG, with intervals; InputError without matplotlib."""
    figure = figure_class()(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(curve.points))
    for name, heading in ((LAST, "last iterate"), (SEEN, "worst seen")):
        shares = [shares.get(name) for _, shares in curve.points]
        known = [(place, share) for place, share in zip(places, shares, strict=True) if share is not None]
        if known:
            lows, highs = zip(*(share.interval for _, share in known), strict=True)
            at = [place for place, _ in known]
            axes.plot(at, [share.value for _, share in known], marker="o", label=heading)
            axes.fill_between(at, lows, highs, alpha=0.2)
    axes.set_xticks(list(places), [label(curve.axis, at) for at, _ in curve.points])
    axes.set(xlabel=curve.axis, ylabel="robust accuracy", ylim=(0, 1), title=f"{curve.results[0].model}, {curve.name}")
    axes.legend()
    figure.savefig(path, dpi=150)


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install matplotlib") from None
    return Figure


def label(axis: str, at: float) -> str:
    return f"{at * 255:.4g}/255" if axis == "eps" else f"{at:g}"
