"""Attacks beside the paper's: what the field asks for today, so that a weak attack is not taken for robustness."""

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
    """Read [[stronger]]: a protocol with changes, or a sweep.

    Each entry may have a name, and say how many images and training runs it takes and how thoroughly it is probed.

    Raises:
        InputError: unknown keys, wrong values, or a name twice.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"stronger = {entries!r}: [[stronger]] tables are needed")
    attacks = [attack for entry in entries for attack in read_entry(dict(entry))]
    names = [attack.name for attack in attacks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"[[stronger]] {name!r} is given twice: give each a name of its own")
    return tuple(attacks)


def read_entry(entry: dict[str, Any]) -> list[Attack]:
    """Read one entry: the parts of a sweep are attacks of their own."""
    limit, runs = (convert(int, entry.pop(key, 0), f"[[stronger]] {key}") for key in ("limit", "runs"))
    check_at_least(0, limit=limit, runs=runs)
    if (check := entry.pop("check", None)) is not None:
        check_name("check in [[stronger]]", check, LEVELS)
    if "protocol" not in entry:
        raise InputError("[[stronger]] has no protocol: give the name of one, see robust-lr list")
    if (sweep := SWEEPS.get(str(entry["protocol"]))) is not None:
        if len(entry) > 1:
            raise InputError(f"[[stronger]] protocol = {sweep.name!r}: a sweep takes limit, runs and check alone")
        return [Attack(f"{sweep.name}-{part.name}", part, limit, runs, check) for part in sweep.parts]
    found = from_table(entry)
    return [Attack(found.name, found, limit, runs, check)]
