"""Words for people: choosing by name with a helpful error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from .errors import InputError

Value = TypeVar("Value")


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
