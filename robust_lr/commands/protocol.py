"""``robust-lr list`` and ``robust-lr protocol``: what there is, and what a protocol fixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ..utils.checks import check_name
from ..utils.errors import InputError
from .terminal import console, say

KINDS = ("models", "data", "protocols", "guards", "recipes", "configs")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
def list_names(kind: str | None) -> None:
    """Models, data sets, protocols, ... by name. All of them, or one KIND."""
    for shown in [kind] if kind else KINDS:
        if kind is None:
            console.print(f"[bold]{'data sets' if shown == 'data' else shown}[/]")
        for line in _NAMES[shown]():
            say(line if kind else f"  {line}")


def _models() -> list[str]:
    from ..models.build import MODELS

    return [" ".join(MODELS), "torchvision:NAME timm:NAME module.path:callable file.py:callable"]


def _data() -> list[str]:
    from ..data.registry import DATASETS

    return [" ".join(DATASETS)]


def _protocols() -> list[str]:
    from ..protocols.presets import PROTOCOLS, SWEEPS

    return [f"{name:28} {protocol}" for name, protocol in (PROTOCOLS | SWEEPS).items()]


def _guards() -> list[str]:
    from ..evaluation.guards import GUARDS

    return [f"{name:28} {(guard.__doc__ or '').partition(chr(10))[0]}" for name, guard in GUARDS.items()]


def _recipes() -> list[str]:
    from ..config.recipes import RECIPES

    return [" ".join(RECIPES)]


def _configs() -> list[str]:
    from ..config.training import shipped

    return [" ".join(shipped())]


_NAMES: dict[str, Callable[[], list[str]]] = {
    "models": _models,
    "data": _data,
    "protocols": _protocols,
    "guards": _guards,
    "recipes": _recipes,
    "configs": _configs,
}


@click.command()
@click.argument("name")
@click.option("--toml", is_flag=True, help="As TOML, to be edited and given to `robust-lr attack --protocol FILE`.")
def protocol(name: str, toml: bool) -> None:
    """Every value of the protocol NAME, and where they come from.

    NAME is one of `robust-lr list protocols`, or a TOML file.
    """
    from ..protocols.files import named, to_toml
    from ..protocols.presets import PROTOCOLS, SWEEPS

    if not name.endswith(".toml"):
        check_name("protocol", name, [*PROTOCOLS, *SWEEPS])
    if not toml:
        values = SWEEPS[name].values() if name in SWEEPS else named(name).values()
        for title, table in tables(values):
            console.print(value_table(title, table))
    elif name in SWEEPS:
        raise InputError(f"{name!r} is a sweep over several protocols, which no single file holds: leave --toml out")
    else:
        head = "# Edit, and attack with: robust-lr attack --protocol FILE.toml\n"
        click.echo(to_toml(named(name), head), nl=False)


def tables(values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A protocol's values, and after them those of its parts."""
    own = {key: value for key, value in values.items() if key not in ("parts", "options")}
    own |= dict(values.get("options", {}))
    return [(values["name"], own), *(found for part in values.get("parts", ()) for found in tables(part))]


def value_table(title: str, values: Mapping[str, Any]) -> Table:
    """One line a value, and the source."""
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        if key != "name":
            table.add_row(key, Text(in_words(key, value, values)))
    return table


def in_words(key: str, value: Any, values: Mapping[str, Any]) -> str:
    """A value as people write it: distances in L-infinity also as fractions of 255."""
    if key in ("eps", "step_size") and values.get("norm") in ("linf", "Linf"):
        return f"{value * 255:.6g}/255 = {value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
