"""Render the main tables as LaTeX with booktabs: bold winners, protocol and number of images in the caption."""

from __future__ import annotations

from .blocks import Cell, Table
from .record import Report
from .sections import sections

#: sections whose tables are rendered
SECTIONS = ("headline", "pairs", "seeds")

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",  # noqa: RUF001
}


def latex(report: Report) -> str:
    """Render ``table*`` environments; the document needs ``\\usepackage{booktabs}``."""
    chosen = [(section, table) for section in sections(report) for table in section.tables if section.key in SECTIONS]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        render_table(table, section.text) for section, table in chosen
    )


def render_table(table: Table, text: str) -> str:
    columns = "".join("r" if column.figures else "l" for column in table.columns)
    headings = [stack_heading(column.heading, column.detail) for column in table.columns]
    lines = [
        r"\begin{table*}",
        r"  \centering\small",
        f"  \\caption{{{escape(f'{table.title}. {text} {table.note}')}}}",
        f"  \\label{{tab:{table.key}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(headings)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(map(cell, row))} \\\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def stack_heading(heading: str, detail: str) -> str:
    """Return a heading above its smaller second line."""
    if not detail:
        return escape(heading)
    lines = f"{escape(heading)} \\\\ {{\\scriptsize {escape(detail)}}}"
    return f"\\begin{{tabular}}[b]{{@{{}}c@{{}}}}{lines}\\end{{tabular}}"


def cell(found: Cell) -> str:
    text = f"\\textbf{{{escape(found.text)}}}" if found.strong else escape(found.text)
    # in braces, because LaTeX reads a bracket after a line break as a length
    return f"{text} {{\\scriptsize {escape(found.detail)}}}" if found.detail else text


def escape(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)
