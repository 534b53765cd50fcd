"""Render the report's tables as Markdown."""

from __future__ import annotations

from .blocks import Cell, Notice, Table
from .record import Report
from .sections import sections


def markdown(report: Report) -> str:
    """Render every table that is not folded, with its note, and every notice."""
    parts = [f"# {report.title}"]
    for section in sections(report):
        tables = [table for table in section.tables if not table.folded]
        notices = [f"> {escape(block.text)}" for block in section.blocks if isinstance(block, Notice)]
        if tables or notices:
            parts += [f"## {section.title}", escape(section.text), *notices, *map(render_table, tables)]
    return "\n\n".join(parts) + "\n"


def render_table(table: Table) -> str:
    headings = [" ".join(filter(None, (column.heading, column.detail))) for column in table.columns]
    lines = [
        f"**{escape(table.title)}**",
        "",
        f"| {' | '.join(map(escape, headings))} |",
        f"|{'|'.join('---:' if column.figures else '---' for column in table.columns)}|",
        *(f"| {' | '.join(map(cell, row))} |" for row in table.rows),
        "",
        escape(table.note),
    ]
    return "\n".join(lines)


def cell(found: Cell) -> str:
    text = f"**{escape(found.text)}**" if found.strong else escape(found.text)
    return f"{text} {escape(found.detail)}" if found.detail else text


def escape(text: str) -> str:
    """Escape the characters that are markup in Markdown or HTML."""
    for character in "\\|*_`<>":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
