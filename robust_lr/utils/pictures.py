"""Figures drawn by matplotlib, an optional dependency: checked before any work, written atomically."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError
from .files import check_writable, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: file suffix -> matplotlib's name of the format
FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}
#: dots per inch of a PNG
RESOLUTION = 200


def check_picture(name: str, file: Path) -> None:
    """Check that a figure can be drawn and written to ``file``.

    Raises:
        InputError: the suffix is not in ``FORMATS``, the file cannot be written, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"`{name}` {file}: the suffix decides the format: use one of {', '.join(FORMATS)}")
    check_writable(**{name: file})
    empty_figure(1, 1)


def empty_figure(width: float, height: float) -> Figure:
    """Create an empty figure; ``width`` and ``height`` are in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing a figure needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_picture(figure: Figure, file: Path) -> None:
    """Write ``figure`` in the format of the suffix, without a date: the same figure gives the same bytes."""
    content = BytesIO()
    kind = FORMATS[file.suffix.lower()]
    dates = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    figure.savefig(content, dpi=RESOLUTION, format=kind, metadata=dates)
    write_atomic(file, content.getvalue())
