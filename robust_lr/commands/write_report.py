"""``robust-lr report``: write finished evaluations as an HTML page, and as tables and figures for a paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ..utils.errors import InputError
from .terminal import say

_PATH = click.Path(path_type=Path)

#: option -> suffixes that its file may have
SUFFIXES = {"out": (".html", ".htm"), "latex": (".tex",), "csv": (".csv",), "markdown": (".md", ".markdown")}


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option("--out", type=_PATH, help="HTML page.  [default: report.html if no other format is given]")
@click.option("--title", default="Robustness report", show_default=True, help="Title of the page.")
@click.option("--latex", type=_PATH, help="LaTeX tables with booktabs; significant winners are bold.")
@click.option("--csv", type=_PATH, help="CSV of every accuracy and every paired difference, one per line.")
@click.option("--markdown", type=_PATH, help="Tables as Markdown.")
@click.option("--png", type=_PATH, metavar="FOLDER", help="Figures, one column wide, as PNG; needs matplotlib.")
@click.option("--pdf", type=_PATH, metavar="FOLDER", help="The same figures as PDF.")
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    title: str,
    latex: Path | None,
    csv: Path | None,
    markdown: Path | None,
    png: Path | None,
    pdf: Path | None,
) -> None:
    """Write a report of finished evaluations: a single HTML file that loads nothing from the network.

    RUNS are folders that `robust-lr attack` or `robust-lr suite` wrote, or folders above them. The report is built
    only from the ledgers; building it again gives the same bytes.
    """
    from ..reports.html import html
    from ..reports.latex import latex as latex_tables
    from ..reports.markdown import markdown as markdown_tables
    from ..reports.pictures import pictures
    from ..reports.record import Report, build
    from ..reports.tidy import tidy
    from ..utils.files import write_atomic

    chosen = {"out": out, "latex": latex, "csv": csv, "markdown": markdown}
    if not any([*chosen.values(), png, pdf]):
        chosen["out"] = Path("report.html")
    check_suffixes(chosen)
    writers: dict[str, Callable[[Report], str]] = {
        "out": html,
        "latex": latex_tables,
        "csv": tidy,
        "markdown": markdown_tables,
    }
    record = build(runs, title=title)
    contents = {path: writers[name](record).encode() for name, path in chosen.items() if path is not None}
    for kind, folder in (("png", png), ("pdf", pdf)):
        if folder is not None:
            contents |= {folder / f"{name}.{kind}": content for name, content in pictures(record, kind).items()}
    for path, content in contents.items():  # nothing is written unless everything could be built
        write_atomic(path, content)
    for path in [*filter(None, chosen.values()), *filter(None, (png, pdf))]:
        say(f"written to {path}")


def check_suffixes(chosen: dict[str, Path | None]) -> None:
    """Raise an InputError for a file whose suffix belongs to another format."""
    for name, path in chosen.items():
        if path is not None and path.suffix.lower() not in SUFFIXES[name]:
            raise InputError(f"`{name}` {str(path)!r}: the file must end in {' or '.join(SUFFIXES[name])}")
