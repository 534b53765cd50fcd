"""The sections of a report, in the order in which they appear."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks import Section
from ..record import Report
from .attacks import cascades, cost
from .classes import classes
from .comparison import comparison
from .curves import curves
from .headline import details, headline
from .images import images
from .provenance import provenance
from .seeds import seeds
from .validity import validity

#: functions that return a section, or None if there is nothing to show
SECTIONS: tuple[Callable[[Report], Section | None], ...] = (
    headline,
    comparison,
    validity,
    details,
    seeds,
    curves,
    classes,
    cascades,
    images,
    cost,
    provenance,
)


def sections(report: Report) -> list[Section]:
    """Return every section that has something to show."""
    return [section for make in SECTIONS if (section := make(report)) is not None]
