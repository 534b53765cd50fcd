"""Protocols with changed values: their names, and sweeps over a grid of eps or steps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ..utils.checks import build_record, check_name, convert
from ..utils.errors import InputError
from .base import DISTANCES, Protocol, parse_distance
from .cascade import Cascade
from .pgd import PGD
from .sweep import Sweep
from .torchattacks import Library

#: names are folder names; longer ones are shortened to a hash of the changes
MAX_NAME = 120


def with_changes(base: Protocol, changes: Mapping[str, Any]) -> Protocol:
    """Change values of ``base``; the name lists the changes (``fab-t,eps=4_255``) unless they include a name.

    Distances may be fractions such as "16/255"; the options of a library attack are a table of those that change.

    Raises:
        InputError: a value that the protocol does not have, or of the wrong type or out of range.
    """
    cascade = isinstance(base, Cascade)
    names = (
        ["eps", "first", "balanced", "name", "source"]
        if cascade
        else [f.name for f in fields(base) if f.name != "attack"]
    )
    for key in changes:
        check_name("key in [attack]", key, ["protocol", *names])
    values = {key: parse_distance(key, value, "attack.") for key, value in changes.items()}
    changed = base
    if cascade and "eps" in values:
        changed = changed.at(convert(float, values.pop("eps"), "attack.eps"))
    if isinstance(base, Library) and "options" in values:
        if not isinstance(given := values.pop("options"), Mapping):
            raise InputError(f"attack.options = {given!r}: a table of options is needed, e.g. options.steps=20")
        changed = replace(base, options={**base.options, **given})
    changed = build_record(type(changed), values, "attack", base=changed)
    words = list_changes(base, changed)
    if not words:
        return changed
    if "name" not in values:
        changed = changed.with_values(name=name_after(base.name, words))
    return changed if "source" in values else changed.with_values(source=f"{base.name} with changes")


def list_changes(base: Protocol, changed: Protocol) -> list[str]:
    """List the values in which ``changed`` differs from ``base``, as "key=value" with a fraction written as 4_255."""
    ours, theirs = (_flatten(protocol.values()) for protocol in (changed, base))
    keys = [key for key in ours if key not in ("name", "source") and ours[key] != theirs.get(key)]
    if isinstance(changed, Cascade):  # all of its parts share its ball
        keys = [key for key in keys if key in ("eps", "first", "balanced")]
    return [f"{key}={_format_value(key, ours[key])}" for key in keys]


def name_after(name: str, words: Sequence[str]) -> str:
    """Make a name that is valid as a folder name and unique to the changes."""
    whole = ",".join([name, *words])
    if len(whole) > MAX_NAME or re.search(r"[^\w.,=+-]", whole.removeprefix(name)):
        return f"{name},{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return whole


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {f"options.{key}": value for key, value in values.get("options", {}).items()}
    return {key: value for key, value in values.items() if key not in ("options", "parts")} | options


def _format_value(key: str, value: Any) -> str:
    if key.rpartition(".")[2] in DISTANCES and isinstance(value, float):
        levels = round(value * 255)
        return f"{levels}_255" if levels / 255 == value else repr(value)
    if isinstance(value, list | tuple):
        return "+".join(str(item) for item in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def apply_grid(base: Protocol | Sweep, *, eps: str | None = None, steps: str | None = None) -> Protocol | Sweep:
    """Run ``base`` over a grid, "0,2,4,8/255" of eps or "1,10,100" steps; a single value only changes the protocol.

    A sweep takes a grid for its own axis. PGD takes steps from one trajectory; with another eps its step size changes
    in proportion.

    Raises:
        InputError: both grids at once, one that is no list of increasing numbers, or an attack without such a value.
    """
    if eps is not None and steps is not None:
        raise InputError("`eps` and `steps`: give only one of them")
    if eps is not None:
        return _apply_eps_grid(base, parse_distances(eps))
    if steps is not None:
        return _apply_steps_grid(base, parse_counts(steps))
    return base


def _apply_eps_grid(base: Protocol | Sweep, grid: Sequence[float]) -> Protocol | Sweep:
    if isinstance(base, Sweep):
        if base.axis != "eps":
            raise InputError(f"`eps`: {base.name!r} is a sweep over {base.axis}; choose a protocol, or 'sweep-eps'")
        pattern: Protocol = max(base.parts, key=lambda part: part.eps)
    elif len(grid) == 1:
        return with_changes(base, {"eps": grid[0]})
    else:
        pattern = base
    if isinstance(pattern, PGD) and not pattern.eps:
        raise InputError(f"`eps`: protocol {base.name!r} has eps = 0, so its step size cannot be scaled to another eps")
    return Sweep(
        name=name_after(base.name, ["eps=" + "+".join(_format_value("eps", eps) for eps in grid)]),
        axis="eps",
        parts=tuple(_change_eps(pattern, eps) for eps in grid),
        source=f"{base.name} with changes",
    )


def _change_eps(pattern: Protocol, eps: float) -> Protocol:
    name = f"eps-{_format_value('eps', eps).removesuffix('_255')}" if pattern.norm == "linf" else f"eps-{eps:g}"
    if isinstance(pattern, PGD):
        pattern = replace(pattern, step_size=min(pattern.step_size * (eps / pattern.eps), 1.0), record=())
    return pattern.at(eps).with_values(name=name)


def _apply_steps_grid(base: Protocol | Sweep, grid: Sequence[int]) -> Protocol | Sweep:
    if isinstance(base, Sweep):
        raise InputError(f"`steps`: {base.name!r} fixes its own; choose a protocol, e.g. 'sweep-steps'")
    if isinstance(base, PGD):
        return with_changes(base, {"steps": grid[-1], "record": tuple(grid) if len(grid) > 1 else ()})
    if "steps" not in {field.name for field in fields(base)}:
        raise InputError(f"`steps`: protocol {base.name!r} has no number of steps to change")
    if len(grid) == 1:
        return with_changes(base, {"steps": grid[0]})
    return Sweep(
        name=name_after(base.name, ["steps=" + "+".join(map(str, grid))]),
        axis="steps",
        parts=tuple(base.with_values(steps=steps, name=f"steps-{steps}") for steps in grid),
        source=f"{base.name} with changes",
    )


def parse_distances(text: str) -> list[float]:
    """ "0,2,4,8/255" -> fractions of 255: a denominator holds for the numbers before it."""
    items = [item.strip() for item in text.split(",")]
    for at in range(len(items) - 2, -1, -1):
        _, slash, denominator = items[at + 1].partition("/")
        if slash and "/" not in items[at]:
            items[at] = f"{items[at]}/{denominator}"
    try:
        values = [float(parse_distance("eps", item)) for item in items]
    except InputError:
        raise InputError(f"`eps` {text!r}: write numbers or fractions, e.g. 0,2,4,8/255") from None
    return _check_increasing(values, "eps", text)


def parse_counts(text: str) -> list[int]:
    """ "1,10,100" -> whole numbers."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() for item in items):
        raise InputError(f"`steps` {text!r}: write whole numbers, e.g. 1,10,100")
    return _check_increasing([int(item) for item in items], "steps", text)


def _check_increasing(values: list[Any], name: str, text: str) -> list[Any]:
    if values != sorted(set(values)):
        raise InputError(f"`{name}` {text!r}: the values must increase")
    return values
