"""A suite's job for one model: load or train it, then run every attack on every data set with every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import data as data_room
from ..config.training import Config, load
from ..data.dataset import Dataset, spread
from ..evaluation.grid import Cell, run_cells
from ..evaluation.session import Prepared, prepare
from ..models.checkpoint import load_model, weights_file
from ..models.external import load_source
from ..paper.jobs import Event
from ..protocols import Sweep
from ..protocols.base import Protocol
from ..training.run import train_run
from ..training.run_folder import CONFIG
from ..utils.devices import pick_device
from .spec import MODELS, Attack, DataSpec, ModelSpec, Suite


@dataclass(frozen=True, kw_only=True)
class SuiteJob:
    """One model of a suite with all its seeds; or one seed of a network that the suite trains.

    Attributes:
        suite: the whole suite.
        model: name of the model in the suite.
        seeds: all seeds of the suite, or the seed that the network is trained with.
        out: folder of the suite.
        shard, batch_size, workers, fresh: as in ``evaluate``.
        device: "auto", "cpu", "cuda", ...
    """

    suite: Suite
    model: str
    seeds: tuple[int, ...]
    out: Path
    device: str = "auto"
    shard: tuple[int, int] | None = None
    batch_size: int = 64
    workers: int = 0
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seeds[0]}" if self.spec.is_trained else self.model

    @property
    def spec(self) -> ModelSpec:
        return self.suite.models[self.model]

    def is_on_cpu(self) -> bool:
        return pick_device(self.device).type == "cpu"

    def check(self) -> None:
        """Raise an InputError for missing weights or images, before any work is done."""
        for name in self.suite.data:
            self.load_images(name)
        if not self.spec.is_trained and not self.spec.source:
            weights_file(self.spec.checkpoint or None)

    def load_images(self, name: str) -> Dataset:
        return load_images(self.suite.data[name])

    def keeps_images_of(self, attack: Attack) -> bool:
        """Return True if the images of ``attack`` are saved; those of sweeps never are."""
        return self.suite.images and not isinstance(attack, Sweep)

    def train_folder(self) -> Path:
        return self.out / MODELS / self.model / f"seed-{self.seeds[0]}"

    def train_config(self) -> Config:
        return load(self.spec.config, [*self.spec.set, f"seed={self.seeds[0]}"])

    def cells(self, data: str) -> list[Cell]:
        """Return one cell for each attack and seed on the data set ``data``."""
        return [
            Cell(attack, seed, self.out / data / self.model / f"seed-{seed}", self.keeps_images_of(attack))
            for seed in self.seeds
            for attack in self.suite.attacks
        ]

    def load(self, data: Dataset) -> nn.Module:
        """Load the model onto its device; a network that the suite trains must be finished."""
        checkpoint = self.train_folder() if self.spec.is_trained else self.spec.checkpoint or None
        if not self.spec.source:
            return load_model(checkpoint).to(pick_device(self.device))
        spec = self.spec
        statistics = (spec.mean, spec.std) if spec.mean else spec.preset or None
        return load_source(
            spec.source,
            weights=spec.weights or None,
            num_classes=data.num_classes,
            in_channels=data.image_shape[0],
            normalization=statistics,
            options=spec.options,
        ).to(pick_device(self.device))

    def prepare(self, model: nn.Module, data: Dataset) -> Prepared:
        """Check and hash the model and the images, and run the guards, once for all cells on these images."""
        parts: list[Protocol] = []
        for attack in self.suite.attacks:
            parts += attack.parts if isinstance(attack, Sweep) else (attack,)
        return prepare(
            model,
            data,
            parts,
            seed=self.seeds[0],
            batch_size=self.batch_size,
            shard=self.shard,
            name=self.model,
            workers=self.workers,
            precision=self.suite.precision,
            allow=self.suite.allow,
        )

    def run(self, number: int, tell: Callable[[Event], None]) -> None:
        """Do all remaining work; an interrupted job continues where it stopped."""
        if self.spec.is_trained:
            folder = self.train_folder()
            for step in train_run(self.train_config(), folder, resume=(folder / CONFIG).exists()):
                tell(Event(number, "train", step.step, step.steps, step))
        for name in self.suite.data:
            data = self.load_images(name)
            ready = self.prepare(self.load(data), data)
            cells = self.cells(name)

            def progress_of(cell: Cell, name: str = name) -> Callable[[int, int], None]:
                label = f"{cell.attack.name} on {name}"
                return lambda done, total: tell(Event(number, "attack", done, total, label))

            for cell, found in run_cells(ready, cells, resume=True, fresh=self.fresh, progress=progress_of):
                tell(Event(number, "result", detail=(name, cell.seed, cell.attack.name, summarize(found))))


def load_images(spec: DataSpec) -> Dataset:
    """Load the test images of a suite."""
    data = data_room.load(spec.name, "test", spec.root or None)
    return spread(data, spec.limit) if spec.limit else data


def summarize(found: Any) -> str:
    """Return a result or a curve in one line, which is sent between processes instead of the rows."""
    if hasattr(found, "robust"):
        return f"clean {found.clean}, robust {found.robust}"
    _, last = found.points[-1]
    return f"worst seen {last['robust_accuracy_worst_seen']} at the last of {len(found.points)} points"


def make_jobs(suite: Suite, out: Path, **options: Any) -> list[SuiteJob]:
    """Return the jobs of a suite: one per model, or one per model and seed if the suite trains the model."""
    todo = []
    for name, spec in suite.models.items():
        groups = [(seed,) for seed in suite.seeds] if spec.is_trained else [suite.seeds]
        todo += [SuiteJob(suite=suite, model=name, seeds=seeds, out=out, **options) for seeds in groups]
    return todo
