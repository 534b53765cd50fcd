"""Building blocks of a report, independent of the output format: tables, plots, images and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.statistics import Proportion


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: text in every format; numbers are already rounded.
        detail: smaller second line, such as an interval.
        sort: key for sorting; by default the text.
        share: counts behind a percentage.
        rows: link to the counted rows, ``"NUMBER:FILTER"`` with the number of the evaluation.
        strong: True for bold text, which marks significance.
        tone: "good", "bad", "muted" or "".
    """

    text: str
    detail: str = ""
    sort: float | str | None = None
    share: Proportion | None = None
    rows: str = ""
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column with its heading, a smaller second line, and whether it holds numbers, which are right-aligned."""

    heading: str
    detail: str = ""
    figures: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        key: identifier, unique among the tables of a report.
        note: text below the table, which names the denominator.
        folded: True if the page shows the table only on demand.
    """

    key: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a plot with its interval, and the text that appears when the mouse points at it."""

    x: float
    y: float
    low: float
    high: float
    words: str = ""


@dataclass(frozen=True)
class Series:
    """The named points of one line or group of marks."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of numbers.

    Attributes:
        key: identifier, unique among the plots of a report.
        kind: a key of ``svg.KINDS``: "lines" with a mark at each point, "smooth" without marks, "steps", "dots",
            "forest", "bars" or "heat".
        summary: alternative text that describes the plot and its result.
        ticks: (position, label) on the x axis; for "forest", "dots" and "bars", the label of each row.
        percent: True if y (for "forest", x) is a fraction, drawn from 0 to 100 %.
    """

    key: str
    kind: str
    title: str
    summary: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    ticks: Sequence[tuple[float, str]] = ()
    percent: bool = True


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Text for copying, such as commands."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A highlighted sentence, with the tone "good", "bad" or "plain"."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as base64-encoded PNG, with alternative text."""

    png: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example of a gallery: clean image, perturbation, adversarial image, predictions, and a link to rows."""

    pictures: Sequence[Picture]
    words: str
    rows: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A gallery of images under attack."""

    title: str
    note: str
    examples: Sequence[Example]


Block = Table | Plot | Listing | Notice | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a report: a title, an introduction, and blocks."""

    key: str
    title: str
    text: str
    blocks: Sequence[Block]

    @property
    def tables(self) -> list[Table]:
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def plots(self) -> list[Plot]:
        return [block for block in self.blocks if isinstance(block, Plot)]


def text_cell(text: str, *, detail: str = "", tone: str = "", rows: str = "") -> Cell:
    return Cell(text=text, detail=detail, tone=tone, rows=rows)


def share_cell(share: Proportion | None, rows: str = "", *, strong: bool = False) -> Cell:
    """Return a cell with a percentage, its interval and its counts; "-" without observations."""
    if share is None or share.value is None:
        return Cell(text="-", sort=-1.0, tone="muted")
    low, high = share.interval
    return Cell(
        text=f"{100 * share.value:.1f}",
        detail=f"[{100 * low:.1f}, {100 * high:.1f}]",
        sort=share.value,
        share=share,
        rows=rows,
        strong=strong,
    )


def number_cell(number: float, text: str, *, detail: str = "", tone: str = "", strong: bool = False) -> Cell:
    return Cell(text=text, detail=detail, sort=number, tone=tone, strong=strong)


def count_cell(count: int, rows: str = "") -> Cell:
    return Cell(text=f"{count:,}", sort=float(count), rows=rows)
