"""Protocols as tables of values, which are printed, written as TOML, and read back from users' files."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.checks import check_name, convert
from ..utils.errors import InputError
from ..utils.toml import read_toml
from .apgd import APGD
from .base import DISTANCES, Protocol, parse_distance
from .cascade import Cascade
from .changes import with_changes
from .custom import Custom
from .fab import FAB
from .minimal_norm import DDN, FMN
from .pgd import PGD
from .presets import get
from .square import Square
from .torchattacks import Library

#: attacks by the name that ``values()`` gives them
KINDS: dict[str, type[Any]] = {
    "pgd": PGD,
    "apgd": APGD,
    "square": Square,
    "fab": FAB,
    "fmn": FMN,
    "ddn": DDN,
    "custom": Custom,
}
_LIBRARY = "torchattacks "
#: values of a user's own attack that come from its function, so that nobody sets them
FROM_FUNCTION = ("function", "entry", "code_sha256")


def from_values(values: Mapping[str, Any]) -> Protocol:
    """Make the protocol whose ``values()`` these are; distances may be fractions such as "16/255".

    Raises:
        InputError: an unknown kind of attack or key, or a value that is missing, of the wrong type, out of range, or
            not free for this kind of attack.
    """
    rest = dict(values)
    kind = rest.pop("attack", None)
    if not isinstance(kind, str):
        raise InputError(f"attack = {kind!r}: say which, {', '.join([*KINDS, 'torchattacks NAME', 'cascade'])}")
    if kind == "cascade":
        parts = rest.pop("parts", None)
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise InputError("parts: a cascade needs a [[parts]] table for each of its attacks")
        made: Any = tuple(map(from_values, parts))
        cascade = Cascade(parts=made, **convert_values(Cascade, rest, without=("parts", "eps", "norm", "criterion")))
        _check_fixed_values(cascade, rest)
        return cascade
    if kind.startswith(_LIBRARY):
        options = rest.pop("options", {})
        if not isinstance(options, Mapping):
            raise InputError(f"options = {options!r}: an [options] table is needed")
        given = {key: parse_distance(key, value) for key, value in options.items()}
        library = Library(
            attack=kind.removeprefix(_LIBRARY),
            options=given,
            **convert_values(Library, rest, without=("attack", "options")),
        )
        _check_fixed_values(library, rest)
        return library
    check_name("attack", kind, [*KINDS, "torchattacks NAME", "cascade"])
    protocol: Protocol = KINDS[kind](**convert_values(KINDS[kind], rest))
    _check_fixed_values(protocol, rest)
    return protocol


def convert_values(kind: type[Any], values: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Select the values that ``kind`` is made from, converted to the right types."""
    hints = typing.get_type_hints(kind)
    own = [field for field in fields(kind) if field.name not in without]
    names = [field.name for field in own]
    for key in values:
        if key not in (*names, *_additional_names(kind)):
            check_name("key of the protocol", key, [name for name in names if name not in FROM_FUNCTION])
    out = {key: convert(hints[key], parse_distance(key, value), key) for key, value in values.items() if key in names}
    for field in own:
        if field.name not in out and field.default is field.default_factory:  # neither: both are MISSING
            raise InputError(f"{field.name} is missing: the protocol needs it")
    return out


def _additional_names(kind: type[Any]) -> list[str]:
    """Return names that ``values()`` includes although users cannot choose their values."""
    return [name for name in ("criterion", "norm", "eps") if hasattr(kind, name)]


def _check_fixed_values(protocol: Protocol, values: Mapping[str, Any]) -> None:
    """Raise InputError if one of the values differs from the protocol's."""
    for key, value in values.items():
        own = getattr(protocol, key)
        wanted = parse_distance(key, value)
        if (list(own) if isinstance(own, tuple) else own) != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise InputError(f"{key} = {value!r}: this kind of attack has {own!r}")


def to_toml(protocol: Protocol, head: str = "") -> str:
    """Write the protocol's values as TOML, from which ``from_values`` makes the same protocol."""
    return head + "\n".join(_lines(protocol.values(), "")) + "\n"


def _lines(values: Mapping[str, Any], path: str) -> list[str]:
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping) or _is_list_of_tables(value)}
    lines = [f"{key} = {to_literal(key, value)}" for key, value in values.items() if key not in nested]
    for key, value in nested.items():
        for table in value if _is_list_of_tables(value) else [value]:
            header = f"[[{path}{key}]]" if _is_list_of_tables(value) else f"[{path}{key}]"
            lines += ["", header, *_lines(table, f"{path}{key}.")]
    return lines


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def to_literal(key: str, value: Any) -> str:
    """Write a value in TOML, where scalars and lists look as in JSON; write distances as fractions of 255."""
    if key in DISTANCES and isinstance(value, float):
        levels = round(value * 255, 6)
        if levels == int(levels) and int(levels) / 255 == value:
            return f'"{int(levels)}/255"'
    return json.dumps(value, ensure_ascii=False)


def from_table(table: Mapping[str, Any], default: str = "lrnet-train") -> Protocol:
    """Read a table that names a ``protocol`` and replaces some of its values; eps and step_size may be "16/255"."""
    changes = dict(table)
    base = load_protocol(changes.pop("protocol", default))
    return with_changes(base, changes) if changes else base


def load_protocol(name: str) -> Protocol:
    """Load a protocol by name, or from a TOML file with all of its values, or with a ``protocol`` and changes."""
    if not str(name).endswith(".toml"):
        return get(name)
    table = read_toml(Path(name))
    if ("attack" in table) == ("protocol" in table):
        raise InputError(f"{name}: give either attack, e.g. 'pgd', and all its values, or protocol = NAME and changes")
    try:
        found = from_values(table) if "attack" in table else from_table(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return found if "name" in table else found.with_values(name=Path(name).stem)
