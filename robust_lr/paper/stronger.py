"""Attacks of a table in addition to the paper's, so that the weakness of an attack is not taken for robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..protocols.files import from_table
from ..protocols.presets import SWEEPS
from ..results.verdict import LEVELS
from ..utils.checks import check_at_least, check_name, convert
from ..utils.errors import InputError
from .jobs import Attack


def read_stronger(entries: Any) -> tuple[Attack, ...]:
    """Read the [[stronger]] attacks of a table, each a protocol with changes, or a sweep.

    An entry can have a ``name``, and the fields ``limit``, ``runs`` and ``check`` of ``jobs.Attack``.

    Raises:
        InputError: unknown keys, wrong values, or a repeated name.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"stronger = {entries!r}: [[stronger]] tables are needed")
    attacks = [attack for entry in entries for attack in read_entry(dict(entry))]
    names = [attack.name for attack in attacks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"[[stronger]] name = {name!r} is given twice: give each attack another name")
    return tuple(attacks)


def read_entry(entry: dict[str, Any]) -> list[Attack]:
    """Read one entry; each part of a sweep becomes a separate attack."""
    limit, runs = (convert(int, entry.pop(key, 0), f"[[stronger]] {key}") for key in ("limit", "runs"))
    check_at_least(0, limit=limit, runs=runs)
    check = read_check(entry.pop("check"), "[[stronger]]") if "check" in entry else None
    if "protocol" not in entry:
        raise InputError("[[stronger]] has no protocol: give a protocol = NAME of `robust-lr list`")
    if (sweep := SWEEPS.get(str(entry["protocol"]))) is not None:
        if len(entry) > 1:
            raise InputError(f"[[stronger]] protocol = {sweep.name!r}: a sweep takes only limit, runs and check")
        return [Attack(f"{sweep.name}-{part.name}", part, limit, runs, check) for part in sweep.parts]
    found = from_table(entry)
    return [Attack(found.name, found, limit, runs, check)]


def read_check(value: Any, section: str) -> str:
    """Return ``value`` if it is one of ``LEVELS``; otherwise raise an InputError that names the section."""
    check_name(f"check in {section}", value, LEVELS)
    return str(value)
