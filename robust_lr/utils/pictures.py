"""Pictures drawn by matplotlib, which is optional: they are checked before the work and written atomically."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError
from .files import check_writable, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: suffix of a file -> matplotlib's name of the format
FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}
#: dots per inch of a PNG
RESOLUTION = 200


def check_picture(name: str, file: Path) -> None:
    """Refuse a picture that could not be drawn or written.

    Raises:
        InputError: a suffix that is none of ``FORMATS``, a place that cannot be written, or no matplotlib.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"`{name}` {file}: the suffix decides the format, one of {', '.join(FORMATS)} is needed")
    check_writable(**{name: file})
    empty_figure(1, 1)


def empty_figure(width: float, height: float) -> Figure:
    """Make a figure with this width and height in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_picture(figure: Figure, file: Path) -> None:
    """Write ``figure`` in the format that the suffix names; the same figure gives the same bytes."""
    content = BytesIO()
    kind = FORMATS[file.suffix.lower()]
    dates = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    figure.savefig(content, dpi=RESOLUTION, format=kind, metadata=dates)
    write_atomic(file, content.getvalue())
