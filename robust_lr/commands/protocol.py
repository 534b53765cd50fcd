"""``robust-lr list`` and ``robust-lr protocol``: list the names that exist, and show the values of a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..utils.checks import check_name
from ..utils.errors import InputError
from .catalog import KINDS, catalog
from .completion import complete
from .terminal import console, json_option, say, write_record


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@json_option()
def list_names(kind: str | None, json_file: Path | None) -> None:
    """List models, data sets, protocols, ... by name: all of them, or one KIND."""
    found = catalog()
    shown = [kind] if kind else [*KINDS]
    if json_file is not None:
        write_record(json_file, {each: found[each] for each in shown})
        return
    for each in shown:
        if kind is None:
            console.print(f"[bold]{'data sets' if each == 'data' else each}[/]")
        print_names(found[each], "" if kind else "  ")
        if each == "models":
            say(f"{'' if kind else '  '}torchvision:NAME timm:NAME module.path:callable file.py:callable")


def print_names(names: Mapping[str, str], indent: str) -> None:
    """Print one name per line if any has a description, else all names on one line."""
    if not any(names.values()):
        console.print(Padding(Text(" ".join(names)), (0, 0, 0, len(indent)))) if console.is_terminal else say(
            indent + " ".join(names)
        )
        return
    width = max(map(len, names))
    if not console.is_terminal:
        for name, line in names.items():
            say(f"{indent}{name:{width}} {line}")
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, line in names.items():
        grid.add_row(Text(indent + name), Text(line))
    console.print(grid)


@click.command()
@click.argument("name", shell_complete=complete("protocols"))
@click.option("--toml", is_flag=True, help="Print TOML to edit and use with `robust-lr attack --protocol FILE`.")
def protocol(name: str, toml: bool) -> None:
    """Show every value of the protocol NAME, and the source of the values.

    NAME is one of `robust-lr list protocols`, or a TOML file.
    """
    from ..protocols.files import load_protocol, to_toml
    from ..protocols.presets import PROTOCOLS, SWEEPS

    if not name.endswith(".toml"):
        check_name("protocol", name, [*PROTOCOLS, *SWEEPS])
    if not toml:
        values = SWEEPS[name].values() if name in SWEEPS else load_protocol(name).values()
        for title, table in tables(values):
            console.print(value_table(title, table))
    elif name in SWEEPS:
        raise InputError(f"{name!r} is a sweep over several protocols, which one file cannot hold: leave out --toml")
    else:
        head = "# Edit, and attack with: robust-lr attack --protocol FILE.toml\n"
        click.echo(to_toml(load_protocol(name), head), nl=False)


def tables(values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and values of a protocol, followed by those of its parts."""
    own = {key: value for key, value in values.items() if key not in ("parts", "options")}
    own |= dict(values.get("options", {}))
    return [(values["name"], own), *(found for part in values.get("parts", ()) for found in tables(part))]


def value_table(title: str, values: Mapping[str, Any]) -> Table:
    """Return a table with one line per value."""
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        if key != "name":
            table.add_row(key, Text(in_words(key, value, values)))
    return table


def in_words(key: str, value: Any, values: Mapping[str, Any]) -> str:
    """Format a value; distances in L-infinity are also shown as fractions of 255."""
    if key in ("eps", "step_size") and values.get("norm") in ("linf", "Linf"):
        return f"{value * 255:.6g}/255 = {value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
