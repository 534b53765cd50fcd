"""What people wrote, checked: names and values, with a helpful error."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from .errors import InputError

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
    """``among[name]``, or an InputError that names what there is."""
    check_name(kind, name, among)
    return among[name]


def check_name(kind: str, name: str, among: Iterable[str]) -> None:
    """InputError, with the list and the nearest name, unless ``name`` is one of ``among``."""
    names = list(among)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}")


def typed(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the annotation ``hint`` says, with int -> float and list -> tuple; InputError otherwise.

    Of a union, ``Literal`` options are taken as they are; other values must be as its first option says.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint, *others = (option for option in typing.get_args(hint) if option is not type(None))
        words = [word for option in others for word in typing.get_args(option)]
        if isinstance(value, str) and value in words:
            return value
        try:
            return typed(hint, value, name)
        except InputError as error:
            raise InputError(f"{error}{''.join(f', or {word!r}' for word in words)}") from None
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        check_name(name, value, inner)
        return value
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return tuple(typed(inner[0], item, name) for item in value)
    number = {int: Integral, float: Real}.get(origin)
    if number is not None and isinstance(value, number) and not isinstance(value, bool):
        return origin(value)
    if origin in (bool, str) and isinstance(value, origin):
        return value
    raise InputError(f"{name} = {value!r}: {_KINDS[origin]} is needed")
