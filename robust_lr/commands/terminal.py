"""What every command of the command line shares: how a line is printed, options that come in groups, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

console = Console()


def say(line: str) -> None:
    """Print a line as it is: unbroken, and with its brackets."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def use_threads(threads: int) -> None:
    """CPU threads of one operation; 0 leaves PyTorch's choice. Two can be slower than one for small networks."""
    import torch

    from ..utils.checks import at_least

    at_least(0, threads=threads)
    if threads:
        torch.set_num_threads(threads)


def set_option(example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    help_text = f"Change one value of the config, e.g. {example}; may be repeated."
    return click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=help_text)


class GroupedOption(click.Option):
    """An option that ``GroupedCommand`` lists under the heading ``group``."""

    def __init__(self, *arguments: Any, group: str, **options: Any):
        super().__init__(*arguments, **options)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings, in the order in which these appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def grouped(group: str) -> Callable[..., Callable[..., Any]]:
    """``click.option`` for one group: ``model = grouped("Model")``, then ``@model("--weights", ...)``."""

    def option(*names: str, **options: Any) -> Callable[..., Any]:
        return click.option(*names, cls=GroupedOption, group=group, **options)

    return option
