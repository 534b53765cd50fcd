"""Draw the report's plots with matplotlib as PNG or PDF, one column of a paper wide."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from ..utils.errors import InputError
from .blocks import Plot
from .record import Report
from .sections import sections

#: width of a figure in inches, and font size in points
WIDTH, FONT_SIZE = 3.35, 8.0

COLORS = ("#1f6feb", "#c2570c", "#0f7b6c", "#7a4bd1", "#c5304e", "#7a6a00", "#b0368b", "#52606d")
STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (4, 2, 1, 2, 1, 2)), (0, (8, 3)), (0, (1, 2)), (0, (5, 2, 2, 2)))
MARKS = "os^D"


def pictures(report: Report, kind: str) -> dict[str, bytes]:
    """Draw every plot in the format ``kind``; return the content of the files by name without suffix.

    Raises:
        InputError: matplotlib is not installed.
    """
    return {plot.key: picture(plot, kind) for section in sections(report) for plot in section.plots}


def picture(plot: Plot, kind: str) -> bytes:
    """Draw the plot in the format ``kind``, a key of ``METADATA``; the same plot gives the same bytes.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install 'robust-lr[report]'") from None
    settings = {"font.size": FONT_SIZE, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
    file = io.BytesIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings, "backend": "agg"}):
        figure = Figure(figsize=(WIDTH, height(plot)), layout="constrained")
        DRAWN[plot.kind](plot, figure.subplots())
        figure.savefig(file, format=kind, dpi=300, metadata=METADATA[kind])
    return file.getvalue()


#: settings that remove metadata, which would differ from run to run, by format
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def height(plot: Plot) -> float:
    if plot.kind in ("lines", "smooth", "steps"):
        return 2.4
    row = 0.12 + 0.07 * len(plot.series) if plot.kind == "dots" else 0.32
    return 0.9 + row * len(plot.ticks)


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def lines(plot: Plot, axes: Any) -> None:
    for index, line in enumerate(plot.series):
        at, values = [point.x for point in line.points], [100 * point.y for point in line.points]
        marks = MARKS[index % len(MARKS)] if plot.kind == "lines" else None
        style: dict[str, Any] = {"color": color(index), "linestyle": STYLES[index % len(STYLES)], "linewidth": 1.2}
        stairs = "steps-post" if plot.kind == "steps" else "default"
        axes.plot(at, values, marker=marks, markersize=3, label=line.name, drawstyle=stairs, **style)
        low, high = [100 * point.low for point in line.points], [100 * point.high for point in line.points]
        if low != high:
            step = "post" if plot.kind == "steps" else None
            axes.fill_between(at, low, high, step=step, alpha=0.16, color=color(index), linewidth=0)
    if plot.ticks:
        ticks = thin_ticks(plot)
        axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set(xlabel=plot.x_label, ylabel=f"{plot.y_label} (%)", ylim=(0, 100))
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    legend(axes, len(plot.series))


def thin_ticks(plot: Plot) -> list[tuple[float, str]]:
    """Return the ticks whose labels do not overlap."""
    low, high = plot.ticks[0][0], plot.ticks[-1][0]
    out: list[tuple[float, str]] = []
    for at, label in plot.ticks:
        if not out or (at - out[-1][0]) / ((high - low) or 1) > 0.03 * (1 + max(len(label), len(out[-1][1])) / 2):
            out.append((at, label))
    return out


def legend(axes: Any, count: int) -> None:
    axes.figure.legend(loc="outside lower center", ncols=min(count, 2), frameon=False, fontsize=FONT_SIZE - 1)


def dots(plot: Plot, axes: Any) -> None:
    count = len(plot.series)
    for index, line in enumerate(plot.series):
        y = [point.y + 0.7 * ((index + 0.5) / count - 0.5) for point in line.points]
        x = [100 * point.x for point in line.points]
        reach = [[100 * (p.x - p.low) for p in line.points], [100 * (p.high - p.x) for p in line.points]]
        axes.errorbar(
            x,
            y,
            xerr=reach,
            fmt=MARKS[index % len(MARKS)],
            markersize=3,
            linewidth=1,
            color=color(index),
            label=line.name,
        )
    axes.set_yticks([at for at, _ in plot.ticks], [label for _, label in plot.ticks])
    axes.invert_yaxis()
    axes.set(xlabel=f"{plot.x_label} (%)", xlim=(0, 100))
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    legend(axes, count)


def forest(plot: Plot, axes: Any) -> None:
    (line,) = plot.series
    x, y = [100 * point.x for point in line.points], [point.y for point in line.points]
    reach = [[100 * (p.x - p.low) for p in line.points], [100 * (p.high - p.x) for p in line.points]]
    axes.errorbar(x, y, xerr=reach, fmt="o", markersize=3, linewidth=1.2, color=COLORS[0])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(y, [label.replace(" \u2212 ", "\n\u2212 ") for _, label in plot.ticks])
    axes.set_ylim(len(y) - 0.5, -0.5)
    axes.set_xlabel(plot.x_label)


def bars(plot: Plot, axes: Any) -> None:
    start = [0.0] * len(plot.ticks)
    for index, line in enumerate(plot.series):
        shares = [100 * point.x for point in line.points]
        shade = "#8b949e" if index == 0 else color(index)
        axes.barh(range(len(start)), shares, left=start, height=0.6, color=shade, edgecolor="white", label=line.name)
        start = [before + share for before, share in zip(start, shares, strict=True)]
    axes.set_yticks([at for at, _ in plot.ticks], [label for _, label in plot.ticks])
    axes.invert_yaxis()
    axes.set(xlabel=f"{plot.x_label} (%)", xlim=(0, 100))
    legend(axes, len(plot.series))


def heat(plot: Plot, axes: Any) -> None:
    values = [[100 * point.x for point in line.points] for line in plot.series]
    axes.imshow(values, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value > 60 else "black")
    axes.set_xticks(range(len(plot.ticks)), [label for _, label in plot.ticks], rotation=20)
    axes.set_yticks(range(len(plot.series)), [line.name for line in plot.series])
    axes.set_xlabel(plot.x_label)


DRAWN: dict[str, Callable[[Plot, Any], None]] = {
    "lines": lines,
    "smooth": lines,
    "steps": lines,
    "dots": dots,
    "forest": forest,
    "bars": bars,
    "heat": heat,
}
