"""Building blocks of a report: tables, plots, images and text, independent of the format that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.statistics import Proportion


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure or word of a table.

    Attributes:
        text: the text that every format shows, with figures in their final rounding.
        detail: a smaller second line, such as an interval.
        sort: key for sorting; by default the text.
        share: the counts behind a percentage.
        rows: link to the rows that were counted, ``"NUMBER:FILTER"`` with the number of an evaluation.
        strong: significantly better than all others.
        tone: "good", "bad" or "muted".
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
    """A heading with a smaller second line; columns of figures are aligned to the right."""

    heading: str
    detail: str = ""
    figures: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption and a note that names the denominator; a folded table is shown on demand."""

    key: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Point:
    """A value with its interval, and the words that appear when a reader points at it."""

    x: float
    y: float
    low: float
    high: float
    words: str = ""


@dataclass(frozen=True)
class Series:
    """The points of one model."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of figures that a table shows as well.

    Attributes:
        kind: a key of ``svg.KINDS``: "lines" with a mark at each point, "smooth" without, "steps", "dots", "forest",
            "bars" or "heat".
        summary: alternative text that says what is drawn and what it shows.
        ticks: (position, label) on the axis of x; for "forest" and "dots", the label of each row.
        percent: whether y (for "forest", x) is a share, drawn from 0 to 100 %.
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
    """Text to copy: commands or values."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A sentence that stands out: "good", "bad" or "plain"."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as PNG in base 64, with alternative text."""

    png: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of the gallery: clean image, perturbation, adversarial image, and the model's predictions."""

    pictures: Sequence[Picture]
    words: str
    rows: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images under attack."""

    title: str
    note: str
    examples: Sequence[Example]


Block = Table | Plot | Listing | Notice | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, an introduction, and blocks; ``tables`` also go into formats without pictures."""

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
    """Make a cell of a percentage with its interval and its counts."""
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
