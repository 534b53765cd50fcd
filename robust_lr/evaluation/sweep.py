"""Sweeps: evaluate the same attack with a growing value, such as eps, and return a curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Dataset
from ..protocols.base import Protocol
from ..protocols.presets import SWEEPS
from ..protocols.sweep import Sweep
from ..results.curve import CURVE, Curve, build_curve
from ..results.targets import Targets
from ..utils.checks import choose
from ..utils.files import write_json
from .harness import evaluate_prepared, resolve_protocol
from .session import Prepared, prepare


def sweep(
    model: nn.Module,
    data: Dataset,
    protocol: str | Sweep,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Curve:
    """Evaluate every value of a sweep; ``out`` gets a folder for each and, at the end, ``curve.json``.

    Args:
        model, data: as for ``evaluate``.
        protocol: a name of ``protocols.SWEEPS`` or a ``protocols.Sweep``.
        out, resume, fresh, targets, images, progress, options: arguments of ``evaluate``.

    Raises:
        InputError, RunError: as ``evaluate``.
    """
    chosen = choose("sweep", protocol, SWEEPS) if isinstance(protocol, str) else protocol
    parts = [resolve_protocol(part, targets) for part in chosen.parts]
    ready = prepare(model, data, parts, **options)
    settings: dict[str, Any] = {"resume": resume, "fresh": fresh, "targets": targets, "images": images}
    return sweep_prepared(ready, chosen, parts, out=out, **settings, progress=progress)


def sweep_prepared(
    ready: Prepared,
    chosen: Sweep,
    parts: Sequence[Protocol],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Run a sweep on a prepared model; ``parts`` are its protocols with their targets resolved."""
    if out is not None:
        (Path(out) / CURVE).unlink(missing_ok=True)
    found = []
    for part in parts:
        folder = None if out is None else Path(out) / part.name
        result, rows = evaluate_prepared(
            ready, part, out=folder, resume=resume, fresh=fresh, targets=targets, images=images, progress=progress
        )
        found.append((part, result, rows))
    curve = build_curve(chosen.name, chosen.source, chosen.axis, found)
    if out is not None:
        write_json(Path(out) / CURVE, curve.to_dict())
    return curve
