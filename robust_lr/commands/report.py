"""Tables of results for the terminal, and figures of curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..protocols.base import Protocol
from ..results.curve import Curve
from ..results.result import Result
from ..results.target_matrix import TargetMatrix
from ..results.validity import Check
from ..utils.pictures import empty_figure, save_picture
from ..utils.statistics import format_interval, format_value
from .terminal import write_record

#: largest value (eps in units of 1/255, or steps) of a linear axis; axes beyond are logarithmic
LINEAR_TO = 20
TICKS = {
    "eps": (0, 1, 2, 4, 8, 16, 32, 64, 128, 255),
    "steps": (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
}

LAST, SEEN, SUCCESS = "robust_accuracy_last", "robust_accuracy_worst_seen", "attack_success"


def result_table(result: Result, protocol: Protocol) -> RichTable:
    """Return a table of the accuracies and the success of a result, with intervals and denominators."""
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
            table.add_row(name, format_value(share), format_interval(share), f"{share.count} / {share.n}")
    for name, count in result.broken_by.items():
        if len(result.broken_by) > 1:
            table.add_row(f"broken by {name}", "", "", str(count))
    return table


def matrix_table(matrix: TargetMatrix) -> RichTable:
    """Return a table of the success in %, with one row per class and one column per target."""
    title = Text(f"{matrix.model} on {matrix.data}: success in %, by class (rows) and target (columns)")
    robust, hit = matrix.robust, matrix.any_reached
    caption = (
        f"right under every target {format_value(robust)} % [{format_interval(robust)}], "
        f"some target reached where clean was right {format_value(hit)} %"
    )
    table = RichTable(title=title, caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    for target in range(len(matrix.reached)):
        table.add_column(str(target), justify="right")
    for label, (reached, attacked) in enumerate(zip(matrix.reached, matrix.attacked, strict=True)):
        cells = (f"{100 * k / n:.0f}" if n else "" for k, n in zip(reached, attacked, strict=True))
        table.add_row(str(label), *cells)
    return table


def check_table(title: str, checks: Sequence[Check]) -> RichTable:
    """Return a table with one line per check."""
    table = RichTable(title=Text(title), box=box.SIMPLE, show_header=False, title_justify="left")
    for options in ({"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
        table.add_column(**options)
    for check in checks:
        found = f"{check.found}: {check.advice}" if check.advice else check.found
        mark = Text("-") if check.passed is None else Text("pass") if check.passed else Text("FAIL", style="bold red")
        table.add_row(mark, check.name, Text(found, style="dim"))
    return table


def verdict_text(result: Result) -> Text:
    """Return the verdict with its advice, and a note if rows were read from the ledger instead of computed."""
    style = {"sound": "green", "weak": "yellow", "misled": "bold red"}.get(result.verdict or "", "dim")
    text = Text(str(result.judgment), style=style)
    if result.judgment.advice:
        text.append(f"\n{result.judgment.advice}", style="not bold dim")
    if result.read_from_ledger and result.origin.get("date"):
        kept = "all" if result.read_from_ledger == result.n else str(result.read_from_ledger)
        text.append(
            f"\n{kept} of {result.n} rows were read from the ledger (evaluation of {result.origin['date']}), not "
            "computed now; --fresh computes them again",
            style="not bold dim",
        )
    return text


def curve_table(curve: Curve) -> RichTable:
    """Return a table of the accuracies in % along a curve, with 95 % intervals."""
    axis, points, first = curve.axis, curve.points, curve.results[0]
    table = RichTable(title=Text(f"{first.model} on {first.data}, {curve.name}"), box=box.SIMPLE_HEAD)
    names = {LAST: "robust, last iterate", SEEN: "robust, worst seen", SUCCESS: "success"}
    shown = {name: heading for name, heading in names.items() if any(name in shares for _, shares in points)}
    for heading in (axis, *shown.values()):
        table.add_column(heading, justify="right")
    for at, shares in points:
        cells = (
            f"{format_value(shares[name])} ({format_interval(shares[name])})" if name in shares else "-"
            for name in shown
        )
        table.add_row(label(axis, at), *cells)
    return table


def write_evaluation(json_file: Path | None, finished: Path) -> None:
    """Copy the JSON file ``finished`` of an evaluation to ``json_file``, if that is given."""
    if json_file is not None:
        write_record(json_file, json.loads(finished.read_text(encoding="utf-8")))


def curve_picture(curve: Curve, file: Path) -> None:
    """Draw accuracy over eps or steps, with intervals; the format is that of the suffix of ``file``."""
    first = curve.results[0]
    figure = empty_figure(4.8, 3.6)
    axes = figure.subplots()
    scale = 255 if curve.axis == "eps" else 1
    styles = {LAST: ("last iterate", "o", "-", "#0072b2", 4), SEEN: ("worst seen", "s", "--", "#d55e00", 7)}
    for name, (heading, marker, line, color, size) in styles.items():
        found = [(at * scale, shares[name]) for at, shares in curve.points if name in shares]
        if not found:
            continue
        at: Any = [place for place, _ in found]
        lows, highs = zip(*(share.interval for _, share in found), strict=True)
        shown: Any = [share.value for _, share in found]
        axes.plot(at, shown, line, marker=marker, ms=size, mfc="none", color=color, label=heading)
        axes.fill_between(at, lows, highs, alpha=0.15, color=color, linewidth=0)
    largest = max(at for at, _ in curve.points) * scale
    if largest > LINEAR_TO:
        axes.set_xscale("symlog", linthresh=1)
        ticks = [tick for tick in TICKS[curve.axis] if tick <= largest]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(-0.2, largest * 1.15)
    axes.set_xlabel("eps, in levels of 255" if curve.axis == "eps" else "steps")
    axes.set_ylabel("accuracy on the true label")
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(
        f"{first.model} on {first.data}, n = {first.n}\n{curve.name}: {attack_words(first.protocol, curve.axis)}",
        fontsize=8,
    )
    axes.legend(title="with 95 % Wilson intervals", title_fontsize=7, fontsize=8)
    save_picture(figure, file)


def attack_words(protocol: Mapping[str, Any], axis: str) -> str:
    """Return a description of a curve's attack, without the value on its axis."""
    words = "targeted PGD" if protocol.get("targeted") else "untargeted PGD"
    others = {"eps": f"eps {label('eps', protocol['eps'])}", "steps": f"{protocol['steps']} steps"}
    return f"{words}, {next(value for name, value in others.items() if name != axis)}"


def label(axis: str, at: float) -> str:
    """Format a value of an axis: eps as a fraction of 255, or a number of steps."""
    return f"{at * 255:.4g}/255" if axis == "eps" else f"{at:g}"
