"""Render the report as a single HTML page that contains its style, script, images and rows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ..utils.errors import InputError
from .blocks import Cell, Gallery, Listing, Notice, Plot, Section
from .record import Report
from .rows import payload
from .sections import sections
from .svg import svg, swatch


def html(report: Report) -> str:
    """Render the page; the same ledgers give the same bytes.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise InputError("an HTML report needs jinja2: pip install 'robust-lr[report]'") from None
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda plot: Markup(svg(plot))
    environment.filters["swatch"] = lambda index, kind: Markup(swatch(index, kind))
    environment.filters["bar"] = bar
    environment.filters["counts"] = counts
    script = template("script.js")
    page: str = environment.get_template("page.html").render(
        report=report,
        sections=[arrange_blocks(section) for section in sections(report)],
        summary=summary(report),
        style=Markup(template("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rows=Markup(payload(report)),
    )
    return page


def template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def arrange_blocks(section: Section) -> dict[str, Any]:
    """Return a section and its blocks by kind, as the page's template expects them."""
    kinds: dict[str, type] = {"notices": Notice, "listings": Listing, "galleries": Gallery, "plots": Plot}
    blocks = {name: [block for block in section.blocks if isinstance(block, kind)] for name, kind in kinds.items()}
    return {
        "section": section,
        **blocks,
        "tables": [table for table in section.tables if not table.folded],
        "folded": [table for table in section.tables if table.folded],
    }


def summary(report: Report) -> str:
    """Return one sentence with the number of models, protocols, seeds and evaluations of a report."""
    found = report.evaluations
    models = list(dict.fromkeys(each.model for each in found))
    data = list(dict.fromkeys(report.data_label(each) for each in found))
    protocols = list(dict.fromkeys(str(each.protocol["name"]) for each in found))
    seeds = sorted({each.seed for each in found})
    sizes = sorted({len(each.evaluation.rows) for each in found})
    images = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    counted = [(len(models), "model"), (len(protocols), "protocol"), (len(seeds), "seed")]
    words = [f"{count} {word}{'s' * (count != 1)}" for count, word in counted]
    evaluations = f"{len(found)} evaluation{'s' * (len(found) != 1)} of {images} images"
    return f"{', '.join(words)} on {join_words(data)}: {evaluations}."


def join_words(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def bar(cell: Cell) -> str:
    """Return the CSS variables of a bar from 0 to 100 % that shows a proportion and its interval."""
    if cell.share is None or cell.share.value is None:
        return ""
    low, high = cell.share.interval
    return f"--v:{100 * cell.share.value:.2f}%;--l:{100 * low:.2f}%;--h:{100 * (high - low):.2f}%"


def counts(cell: Cell) -> str:
    """Return the numerator and the denominator of a cell's proportion in words; "" without one."""
    return "" if cell.share is None else f"{cell.share.count:,} of {cell.share.n:,} images"
