"""Check names and values given by the user; errors say what is allowed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = TypeVar("Value")

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a list",
    Sequence: "a list",
}


def choose(kind: str, name: str, among: Mapping[str, Value]) -> Value:
    """Return ``among[name]``, or raise an InputError that lists the allowed names."""
    check_name(kind, name, among)
    return among[name]


def check_name(kind: str, name: str, among: Iterable[str]) -> None:
    """Raise an InputError with the allowed names and the nearest one unless ``name`` is one of ``among``."""
    names = list(among)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}")


def convert(hint: Any, value: Any, name: str) -> Any:
    """Convert ``value`` to the type ``hint`` (int to float, list to tuple); InputError if it does not fit.

    Args:
        hint: type annotation. For a union, values of its ``Literal`` members are accepted as they are; other values
            must fit its first member.
        name: name of the value in errors.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint, *others = (option for option in typing.get_args(hint) if option is not type(None))
        words = [word for option in others for word in typing.get_args(option)]
        if isinstance(value, str) and value in words:
            return value
        try:
            return convert(hint, value, name)
        except InputError as error:
            raise InputError(f"{error}{''.join(f', or {word!r}' for word in words)}") from None
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        check_name(name, value, inner)
        return value
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return tuple(convert(inner[0], item, name) for item in value)
    number = {int: Integral, float: Real}.get(origin)
    if number is not None and isinstance(value, number) and not isinstance(value, bool):
        return origin(value)
    if origin in (bool, str) and isinstance(value, origin):
        return value
    raise InputError(f"{name} = {value!r}: {_KINDS[origin]} is needed")


Record = TypeVar("Record", bound="DataclassInstance")


def build_record(kind: type[Record], table: Mapping[str, Any], section: str, base: Record | None = None) -> Record:
    """Build ``kind(**table)``, or ``base`` with those values replaced, after checking names and types.

    ``section`` names the table in errors; "" is the top level.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        check_name(f"key in [{section}]" if section else "key", key, [f.name for f in fields(kind)])
        values[key] = convert(hints[key], value, f"{section}.{key}" if section else key)
    return kind(**values) if base is None else replace(base, **values)


#: whole numbers above this are mistakes, and would overflow in tensors and in the ledger
MAX_COUNT = 2**31 - 1


def check_at_least(low: float, **values: float) -> None:
    """Raise an InputError unless every value is finite and at least ``low``, and at most ``MAX_COUNT`` if whole."""
    for name, value in values.items():
        if isinstance(value, int) and value > MAX_COUNT:
            raise InputError(f"{name} = {value}: must be at most {MAX_COUNT}")
        if not low <= value < inf:
            raise InputError(f"{name} = {value}: must be at least {low} and finite")


def check_shares(**values: float) -> None:
    """Raise an InputError unless every value is in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} = {value}: must be in [0, 1)")


def check_whole(least: int, **values: int) -> None:
    """Raise an InputError unless every value is an integer that is at least ``least``."""
    for name, value in values.items():
        if not isinstance(value, int) or not least <= value <= MAX_COUNT:
            most = f" and at most {MAX_COUNT}" if isinstance(value, int) and value > MAX_COUNT else ""
            raise InputError(f"{name} = {value}: must be a whole number, at least {least}{most}")
