"""Output of the command line: lines and tables on stdout, grouped options, and options that commands share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from math import isfinite
from pathlib import Path
from typing import Any

import click
import rich.console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from ..utils.errors import InputError

#: minimum width to which a column of text is folded; columns of numbers are never folded
MIN_TEXT_WIDTH = 12
#: minimum width of the first column on a narrow terminal
MIN_WIDTH = 4
#: width of a pipe or a file in characters, more than any table has
WIDE = 10_000

#: stands for stdout in options that take a file
STDOUT = Path("-")


class Console(rich.console.Console):
    """A console that never truncates a cell: it folds text, and if necessary splits a table into several.

    Output to a pipe or a file is as wide as its content.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        for each in objects:
            if not isinstance(each, Table):
                super().print(each, **options)
                continue
            for part in fit_to_width(each, self):
                if self.is_terminal:
                    super().print(part, **options)
                    continue
                before, self._width = self._width, WIDE
                try:
                    self._width = max(80, Measurement.get(self, self.options, part).maximum)
                    super().print(part, **options)
                finally:
                    self._width = before


console = Console()


def fit_to_width(table: Table, console: rich.console.Console) -> list[Table]:
    """Split ``table`` into tables that fit the width; each has some of the columns and repeats the first one."""
    columns = [copy(column) for column in table.columns]
    for column in columns:
        natural = width_of(column, console)
        column.overflow = "fold"
        column.no_wrap = column.justify == "right"
        column.min_width = natural if column.no_wrap else min(natural, MIN_TEXT_WIDTH)
    edges = 4 if table.pad_edge or table.box is not None else 0
    gap = max(sum(table.padding[1::2]), 1) + (1 if table.box is not None else 0)
    room = console.width - edges if console.is_terminal else WIDE
    widest = max((column.min_width or 0 for column in columns[1:]), default=0)
    if not columns[0].no_wrap:
        columns[0].min_width = max(MIN_WIDTH, min(columns[0].min_width or 0, room - widest - 2 * gap))
    parts: list[list[Column]] = [columns[:1]]
    for column in columns[1:]:
        used = sum((each.min_width or 0) + gap for each in parts[-1])
        if used + (column.min_width or 0) > room and len(parts[-1]) > 1:
            parts.append(columns[:1])
        parts[-1] = [*parts[-1], column]
    tables = []
    for number, chosen in enumerate(parts):
        part = copy(table)
        part.columns = [copy(column) for column in chosen]
        for index, column in enumerate(part.columns):
            column._index = index
        part.title = table.title if number == 0 else None
        part.caption = table.caption if number == len(parts) - 1 else None
        tables.append(part)
    return tables


def width_of(column: Column, console: rich.console.Console) -> int:
    """Return the width in characters of the widest line of a column, including the header."""
    cells = [column.header, *column.cells]
    widths = (Text.from_markup(cell).cell_len if isinstance(cell, str) else _text_width(cell) for cell in cells)
    return max(widths, default=0)


def _text_width(cell: Any) -> int:
    return max((line.cell_len for line in cell.split()), default=0) if isinstance(cell, Text) else 0


def say(line: str) -> None:
    """Print a line as it is, without wrapping or markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(record: Any) -> None:
    """Write ``record`` to stdout; ``json_option`` has redirected all other output to stderr."""
    import json

    click.echo(json.dumps(record, indent=2, allow_nan=False))


def duration(seconds: float) -> str:
    """Format a duration, e.g. "0:07", "1:02:03" or "2 days 3 h"; "-:--" if it is unknown."""
    if not isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count_of(number: int, noun: str) -> str:
    """Format a number with its noun, e.g. "1 thread", "2 threads", "1,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# Options shared by several commands


def hush_console() -> None:
    """Print only errors and no progress until the command ends; see cli.py."""
    console.quiet = True


def _hush(ctx: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if quiet:
        hush_console()
        logging.getLogger("robust_lr").setLevel(logging.WARNING)


def quiet_option() -> click.Option:
    """Return the option ``--quiet``, which cli.py adds to every command."""
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_hush,
        help="Print errors only.",
    )


def json_option(option: Callable[..., Any] = click.option, **changes: Any) -> Callable[..., Any]:
    """Return the option ``--json FILE``; with ``-``, the JSON goes to stdout and everything else to stderr."""

    def redirect(ctx: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
        if file == STDOUT:
            console.stderr = True  # until the end of the command; see cli.py
        return file

    help_text = "Write all results to this file as JSON; `-` is stdout, and tables then go to stderr."
    values = {"type": click.Path(path_type=Path), "metavar": "FILE", "help": help_text, "callback": redirect, **changes}
    decorator: Callable[..., Any] = option("--json", "json_file", **values)
    return decorator


def write_record(file: Path, record: Any) -> None:
    """Write ``record`` as JSON to ``file``, or to stdout for ``-``."""
    from ..utils.files import write_json

    if file == STDOUT:
        print_json(record)
    else:
        write_json(file, record)
        say(f"Written to {file}")


def threads_option(option: Callable[..., Any] = click.option) -> Callable[..., Any]:
    """Return the option ``--threads``; see ``use_threads``."""
    decorator: Callable[..., Any] = option(
        "--threads", type=int, metavar="N", help="CPU threads.  [default: PyTorch's choice]"
    )
    return decorator


def processes_option(option: Callable[..., Any] = click.option) -> Callable[..., Any]:
    """Return the option ``--processes``."""
    decorator: Callable[..., Any] = option(
        "--processes",
        type=int,
        metavar="N",
        help="Number of single-threaded processes that attack on a CPU.  [default: one per thread]",
    )
    return decorator


def use_threads(threads: int | None) -> None:
    """Set the number of CPU threads per operation; 0 or None leaves the number to PyTorch.

    For small networks, two threads can be slower than one.
    """
    import torch

    from ..utils.machine import check_threads

    if threads is not None:
        check_threads(threads)
    if threads:
        torch.set_num_threads(threads)


def once_each(ctx: click.Context, parameter: click.Parameter, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Raise an InputError for a key that is set twice."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--set {key} is given {keys.count(key)} times: give it once")
    return overrides


def set_option(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--set``, with ``example`` in its help."""
    help_text = f"Change one value of the config, e.g. {example}; may be repeated."
    return click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=help_text, callback=once_each
    )


class GroupedOption(click.Option):
    """An option that ``GroupedCommand`` lists under the heading ``group``."""

    def __init__(self, *arguments: Any, group: str, **options: Any):
        super().__init__(*arguments, **options)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under the headings of their groups, in order of first appearance."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option_in_group(group: str) -> Callable[..., Callable[..., Any]]:
    """Return ``click.option`` for one group, used as ``model = option_in_group("Model")``, ``@model("--weights")``."""

    def option(*names: str, **options: Any) -> Callable[..., Any]:
        return click.option(*names, cls=GroupedOption, group=group, **options)

    return option
