"""Models x protocols on the same images: a loop over the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Dataset
from ..protocols.base import Protocol
from ..results.result import Result
from ..results.targets import Targets
from ..utils.errors import InputError
from .harness import evaluated, resolved
from .session import prepare


@dataclass(frozen=True)
class BenchmarkResult:
    """Results by (model, protocol), all on the same images with the same seed."""

    results: Mapping[tuple[str, str], Result]

    def to_dict(self) -> dict[str, Any]:
        nested: dict[str, dict[str, Any]] = {}
        for (model, protocol), result in self.results.items():
            nested.setdefault(model, {})[protocol] = result.to_dict()
        return nested


def benchmark(
    models: Mapping[str, nn.Module],
    data: Dataset,
    protocols: Sequence[str | Protocol] = ("none", "lrnet-targeted", "lrnet-untargeted"),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> BenchmarkResult:
    """``evaluate`` for each model and protocol, with its arguments; ``out`` gets a folder a pair.

    Raises:
        InputError: as ``evaluate``; an unknown protocol, or two of one name, before any work is done.
    """
    chosen = [resolved(entry, targets) for entry in protocols]
    names = [protocol.name for protocol in chosen]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"protocol {name!r} is given twice: give custom protocols a name each")
    results = {}
    for model_name, model in models.items():
        ready = prepare(model, data, chosen, name=model_name, **options)
        for protocol in chosen:
            folder = None if out is None else Path(out) / model_name / protocol.name
            results[model_name, protocol.name], _ = evaluated(
                ready, protocol, out=folder, resume=resume, fresh=fresh, targets=targets, progress=progress
            )
    return BenchmarkResult(results)
