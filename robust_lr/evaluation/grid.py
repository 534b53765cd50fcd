"""Evaluate models x protocols x seeds on the same images: a loop over the harness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Dataset
from ..protocols.base import Protocol
from ..protocols.sweep import Sweep
from ..results.curve import Curve
from ..results.result import Result
from ..results.shards import merge_sweep_when_complete, merge_when_complete, shard_folder
from ..results.targets import Targets
from ..utils.errors import InputError
from .harness import evaluate_prepared, resolve_protocol
from .session import Prepared, prepare
from .sweep import sweep_prepared


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
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> BenchmarkResult:
    """Evaluate each model under each protocol, with the arguments of ``evaluate``; ``out`` gets a folder for each pair.

    Raises:
        InputError: as ``evaluate``; an unknown protocol, or two of the same name, before any work is done.
    """
    chosen = [resolve_protocol(entry, targets) for entry in protocols]
    names = [protocol.name for protocol in chosen]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"protocol {name!r} is given twice: give each custom protocol a name of its own")
    results = {}
    for model_name, model in models.items():
        ready = prepare(model, data, chosen, name=model_name, **options)
        above = None if out is None else Path(out) / model_name
        cells = [Cell(protocol, ready.bench.seed, above, images) for protocol in chosen]
        for cell, found in run_cells(
            ready,
            cells,
            resume=resume,
            fresh=fresh,
            targets=targets,
            progress=progress and (lambda _: progress),
        ):
            assert isinstance(found, Result)
            results[model_name, cell.attack.name] = found
    return BenchmarkResult(results)


@dataclass(frozen=True)
class Cell:
    """One attack with one seed.

    Attributes:
        attack: a protocol or a sweep.
        seed: seed of starts and targets.
        above: parent of the folder named after the attack; None writes nothing.
        images: save the adversarial images in that folder.
    """

    attack: Protocol | Sweep
    seed: int
    above: Path | None
    images: bool = False

    @property
    def folder(self) -> Path | None:
        return None if self.above is None else self.above / self.attack.name


def run_cells(
    ready: Prepared,
    cells: Sequence[Cell],
    *,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    progress: Callable[[Cell], Callable[[int, int], None]] | None = None,
) -> Iterator[tuple[Cell, Result | Curve]]:
    """Run the cells one after the other on a model and its images, which have been checked and hashed once.

    If ``ready`` is a shard, it gets its own folder, and the last shard to finish merges them all. ``progress`` returns,
    for a cell, the function that is called with the progress of its images.
    """
    for cell in cells:
        seeded = replace(ready, bench=replace(ready.bench, seed=cell.seed))
        folder = cell.folder if ready.shard is None or cell.folder is None else shard_folder(cell.folder, ready.shard)
        options: dict[str, Any] = {
            "out": folder,
            "resume": resume,
            "fresh": fresh,
            "targets": targets,
            "images": cell.images,
            "progress": None if progress is None else progress(cell),
        }
        found: Result | Curve
        if isinstance(cell.attack, Sweep):
            parts = [resolve_protocol(part, targets) for part in cell.attack.parts]
            found = sweep_prepared(seeded, cell.attack, parts, **options)
        else:
            found = evaluate_prepared(seeded, cell.attack, **options)[0]
        if ready.shard is not None and cell.folder is not None:
            join = merge_sweep_when_complete if isinstance(found, Curve) else merge_when_complete
            found = join(cell.folder, ready.shard[1]) or found
        yield cell, found
