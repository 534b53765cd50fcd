"""Draw plots as SVG without scripts, in the page's colors, with alternative text and the value of each mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10

from .blocks import Plot, Point, Series

WIDTH, HEIGHT = 460.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 46.0

#: dash patterns that distinguish series, in addition to colors and marks
DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 2 1 2 1 2", "10 4", "1 2", "6 2 2 2")
#: number of colors of the page's theme, ``--s0`` and so on
COLORS = 8


def svg(plot: Plot) -> str:
    """Draw the plot as an ``svg`` element."""
    body, height = KINDS[plot.kind](plot)
    key = escape(plot.key, quote=True)
    return (
        f'<svg viewBox="0 0 {number(WIDTH)} {number(height)}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(plot.title)}</title><desc id="{key}-d">{escape(plot.summary)}</desc>'
        f"{''.join(body)}</svg>"
    )


def number(value: float) -> str:
    """Format a coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text.removesuffix(".0").replace("-0", "0", 1) if text in ("-0.0",) else text.removesuffix(".0")


def color(index: int) -> str:
    return f"var(--s{index % COLORS})"


def text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "tick", turn: bool = False) -> str:
    turned = f' transform="rotate(-90 {number(x)} {number(y)})"' if turn else ""
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{turned}>{escape(words)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"/>'


def mark(x: float, y: float, index: int, words: str, size: float = 3.4) -> str:
    """Draw a mark in the shape of its series; pointing at it shows ``words``."""
    fill = f'fill="{color(index)}"'
    shapes = (
        f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(size)}" {fill}>',
        f'<rect x="{number(x - size)}" y="{number(y - size)}" width="{number(2 * size)}" height="{number(2 * size)}" '
        f"{fill}>",
        f'<path d="M{number(x)} {number(y - 1.3 * size)}L{number(x + 1.2 * size)} {number(y + size)}'
        f'L{number(x - 1.2 * size)} {number(y + size)}Z" {fill}>',
        f'<path d="M{number(x)} {number(y - 1.4 * size)}L{number(x + 1.4 * size)} {number(y)}'
        f'L{number(x)} {number(y + 1.4 * size)}L{number(x - 1.4 * size)} {number(y)}Z" {fill}>',
    )
    shape = shapes[index % len(shapes)]
    return f"{shape}<title>{escape(words)}</title></{shape[1 : shape.index(' ')]}>"


def swatch(index: int, kind: str) -> str:
    """Draw the sample of a series in the legend."""
    stroke = f'stroke="{color(index)}" stroke-width="2" stroke-dasharray="{dash(index)}"'
    line = f'<line x1="1" y1="6" x2="25" y2="6" {stroke}/>'
    block = f'<rect x="5" y="1" width="16" height="10" rx="2" fill="{bar_color(index)}"/>'
    samples = {"bars": block, "dots": mark(13, 6, index, ""), "steps": line, "smooth": line}
    sample = samples.get(kind, line + mark(13, 6, index, ""))
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{sample}</svg>'


def dash(index: int) -> str:
    return DASHES[index % len(DASHES)]


def bar_color(index: int) -> str:
    return "var(--s8)" if index == 0 else color(index)


# Lines


def lines(plot: Plot) -> tuple[list[str], float]:
    return frame(plot, steps=False)


def steps(plot: Plot) -> tuple[list[str], float]:
    return frame(plot, steps=True)


def frame(plot: Plot, *, steps: bool) -> tuple[list[str], float]:
    """Draw axes, intervals and lines; y is a fraction."""
    xs = [point.x for line in plot.series for point in line.points] + [at for at, _ in plot.ticks]
    low, high = min(xs), max(xs)
    span = (high - low) or 1.0
    ticks = list(plot.ticks) or round_ticks(low, high)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place_x(x: float) -> float:
        return LEFT + width * (x - low) / span

    def place_y(y: float) -> float:
        return TOP + height * (1 - y)

    out = []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        out.append(rule(LEFT, place_y(share), WIDTH - RIGHT, place_y(share)))
        out.append(
            text(LEFT - 6, place_y(share) + 4, f"{100 * share:.0f} %" if share == 1 else f"{100 * share:.0f}", "end")
        )
    free = -1e9
    for at, label in ticks:
        if not low <= at <= high:
            continue
        half = 3.6 * len(label)
        if place_x(at) - half < free:
            continue
        free = place_x(at) + half + 4
        out.append(rule(place_x(at), TOP + height, place_x(at), TOP + height + 4, "axis"))
        out.append(text(place_x(at), TOP + height + 17, label))
    if not plot.ticks and low < 0 < high:
        out.append(rule(place_x(0), TOP, place_x(0), TOP + height, "axis"))
    out.append(text(LEFT + width / 2, HEIGHT - 6, plot.x_label, kind="label"))
    out.append(text(15, TOP + height / 2, plot.y_label, kind="label", turn=True))
    for index, line in enumerate(plot.series):
        out += band(line, index, place_x, place_y, steps)
    for index, line in enumerate(plot.series):
        path = trace([(place_x(p.x), place_y(p.y)) for p in line.points], steps)
        out.append(f'<path class="curve" d="{path}" stroke="{color(index)}" stroke-dasharray="{dash(index)}"/>')
        if plot.kind == "lines":
            out += [mark(place_x(p.x), place_y(p.y), index, p.words) for p in line.points]
    return out, HEIGHT


def band(
    line: Series, index: int, place_x: Callable[[float], float], place_y: Callable[[float], float], steps: bool
) -> list[str]:
    """Draw the intervals of a line as a band."""
    if all(point.low == point.high for point in line.points):
        return []
    upper = trace([(place_x(p.x), place_y(p.high)) for p in line.points], steps)
    lower = trace([(place_x(p.x), place_y(p.low)) for p in reversed(line.points)], steps, backwards=True)
    return [f'<path class="band" d="{upper}L{lower[1:]}Z" fill="{color(index)}"/>']


def trace(points: Sequence[tuple[float, float]], steps: bool, backwards: bool = False) -> str:
    """Return a path through points, straight or as a staircase that keeps each value until the next point."""
    (x0, y0), *rest = points
    out = [f"M{number(x0)} {number(y0)}"]
    for x, y in rest:
        if steps:
            out.append(f"V{number(y)}H{number(x)}" if backwards else f"H{number(x)}V{number(y)}")
        else:
            out.append(f"L{number(x)} {number(y)}")
    return "".join(out)


def round_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five round values from ``low`` to ``high``."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** floor(log10(rough))
    gap = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = floor(low / gap)
    values = [gap * at for at in range(first, first + 20) if low <= gap * at <= high]
    return [(value, f"{value:g}") for value in values]


# Rows


def dots(plot: Plot) -> tuple[list[str], float]:
    """Draw fractions with intervals: a row for each tick, with a mark for each series."""
    count, rows = len(plot.series), plot.ticks
    row_height = 12.0 + 9.0 * count
    left = 16.0 + 6.6 * max(len(label) for _, label in rows)
    height = TOP + row_height * len(rows) + 40

    def place(share: float) -> float:
        return left + (WIDTH - RIGHT - left) * share

    out = share_axis(place, TOP, TOP + row_height * len(rows), plot.x_label)
    for at, label in rows:
        middle = TOP + row_height * (at + 0.5)
        out.append(text(left - 8, middle + 4, label, "end"))
        out.append(rule(left, TOP + row_height * (at + 1), WIDTH - RIGHT, TOP + row_height * (at + 1)))
    for index, line in enumerate(plot.series):
        for point in line.points:
            y = TOP + row_height * point.y + 6 + 9.0 * (index + 0.5)
            out.append(whisker(place(point.low), place(point.high), y, index))
            out.append(mark(place(point.x), y, index, point.words))
    return out, height


def whisker(low: float, high: float, y: float, index: int) -> str:
    return (
        f'<line class="whisker" x1="{number(low)}" y1="{number(y)}" x2="{number(high)}" y2="{number(y)}" '
        f'stroke="{color(index)}"/>'
    )


def share_axis(place: Callable[[float], float], top: float, bottom: float, label: str) -> list[str]:
    """Draw vertical lines from 0 to 100 % with their labels."""
    out = []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        out.append(rule(place(share), top, place(share), bottom))
        out.append(
            text(
                place(share), bottom + 15, f"{100 * share:.0f}" + " %" * (share == 1), "end" if share == 1 else "middle"
            )
        )
    return [*out, text((place(0) + place(1)) / 2, bottom + 34, label, kind="label")]


def forest(plot: Plot) -> tuple[list[str], float]:
    """Draw a forest plot: differences with intervals and a line at zero, each below its name."""
    (line,) = plot.series
    row_height, left, right = 38.0, 14.0, WIDTH - RIGHT
    bottom = TOP + row_height * len(line.points)
    reach = 1.1 * max(max(abs(point.low), abs(point.high)) for point in line.points) or 0.01

    def place(value: float) -> float:
        return left + (right - left) * (value + reach) / (2 * reach)

    out = []
    for value, _ in round_ticks(-100 * reach, 100 * reach):
        out.append(rule(place(value / 100), TOP, place(value / 100), bottom, "axis" if value == 0 else "grid"))
        out.append(text(place(value / 100), bottom + 15, f"{value:+g}" if value else "0"))
    for point, (_, label) in zip(line.points, plot.ticks, strict=True):
        y = TOP + row_height * point.y
        decided = 0 if point.low > 0 or point.high < 0 else 7
        out.append(text(left, y + 14, label, "start", "name"))
        out.append(whisker(place(point.low), place(point.high), y + 26, decided))
        out.append(mark(place(point.x), y + 26, decided, words_of(point)))
    out.append(text(WIDTH / 2, bottom + 34, plot.x_label, kind="label"))
    return out, bottom + 40


def words_of(point: Point) -> str:
    return f"{point.words}: {100 * point.x:+.1f} [{100 * point.low:+.1f}, {100 * point.high:+.1f}] points"


def bars(plot: Plot) -> tuple[list[str], float]:
    """Draw stacked bars of fractions that add up to one, each below its name."""
    rows, row_height, left = plot.ticks, 40.0, 14.0
    bottom = TOP + row_height * len(rows)

    def place(share: float) -> float:
        return left + (WIDTH - RIGHT - left) * share

    out = share_axis(place, TOP, bottom, plot.x_label)
    for at, label in rows:
        out.append(text(left, TOP + row_height * at + 14, label, "start", "name"))
        start = 0.0
        for index, line in enumerate(plot.series):
            point = next(point for point in line.points if point.y == at)
            if point.x:
                out.append(
                    f'<rect class="part" x="{number(place(start))}" y="{number(TOP + row_height * at + 19)}" '
                    f'width="{number(place(start + point.x) - place(start))}" height="15" fill="{bar_color(index)}">'
                    f"<title>{escape(point.words)}</title></rect>"
                )
            start += point.x
    return out, bottom + 40


def heat(plot: Plot) -> tuple[list[str], float]:
    """Draw a heat map of fractions: a row for each series, a column for each tick."""
    columns = len(plot.ticks)
    side_x, side_y = (WIDTH - RIGHT - 14.0) / columns, 52.0
    out = []
    for at, (_, label) in enumerate(plot.ticks):
        out.append(text(14 + side_x * (at + 0.5), TOP + 12, label))
    for row, line in enumerate(plot.series):
        top = TOP + 20 + side_y * row
        out.append(text(14, top + 13, line.name, "start", "name"))
        for at, point in enumerate(line.points):
            out.append(
                f'<rect class="part" x="{number(14 + side_x * at)}" y="{number(top + 18)}" width="{number(side_x)}" '
                f'height="26" fill="var(--s0)" fill-opacity="{0.08 + 0.5 * point.x:.2f}">'
                f"<title>{escape(point.words)}</title></rect>"
            )
            out.append(text(14 + side_x * (at + 0.5), top + 35, f"{100 * point.x:.1f}", kind="value"))
    height = TOP + 20 + side_y * len(plot.series) + 24
    out.append(text(WIDTH / 2, height - 6, plot.x_label, kind="label"))
    return out, height


KINDS: dict[str, Callable[[Plot], tuple[list[str], float]]] = {
    "lines": lines,
    "smooth": lines,
    "steps": steps,
    "dots": dots,
    "forest": forest,
    "bars": bars,
    "heat": heat,
}
