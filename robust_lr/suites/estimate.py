"""Estimate the work of a suite and an upper bound of its duration: count passes, and time one on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ..config.training import Config
from ..data.dataset import Dataset, spread
from ..evaluation.grid import Cell
from ..models.build import build_model
from ..models.checkpoint import WEIGHTS
from ..paper.jobs import Job
from ..protocols import Library, Sweep
from ..protocols.base import Protocol, StepwiseProtocol
from ..results.shards import shard_folder
from ..results.stored import LEDGER, read_ledger
from ..training.run import prepare
from ..utils.contexts import device_of
from .job import SuiteJob

#: number of images in a timed pass, and of repetitions
IMAGES, REPEATS = 32, 3

#: assumed number of steps of a library's attack whose options do not set it
LIBRARY_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Line:
    """Estimate for one attack with one seed, or for the training of one network.

    Attributes:
        model, data, attack: names; for a training, ``attack`` says so.
        done, images: number of finished images, and of all images (training images for a training).
        forwards, backwards: maximum number of passes per image.
        seconds: upper bound of the time for the remaining images.
    """

    model: str
    data: str
    attack: str
    seed: int
    done: int
    images: int
    forwards: int
    backwards: int
    seconds: float


def count_passes(attack: Protocol | Sweep, classes: int) -> tuple[int, int]:
    """Return the maximum number of forward and backward passes per image; decided images leave the attack earlier."""
    parts: list[Protocol] = []
    for part in attack.parts if isinstance(attack, Sweep) else (attack,):
        parts += part.attacks()
    forwards = backwards = 0
    for part in parts:
        if isinstance(part, StepwiseProtocol):
            steps = part.draws(classes) * (part.steps + 1)
        elif isinstance(part, Library):
            targets = classes - 1 if part.options.get("multi_targeted") else 1
            steps = targets * int(part.options.get("n_queries", part.options.get("steps", LIBRARY_STEPS)))
        else:
            steps = part.steps + 1
        forwards += steps + 1
        backwards += steps if part.follows_gradients else 0
    return forwards + 1, backwards


def seconds_per_pass(model: nn.Module, data: Dataset) -> tuple[float, float]:
    """Return the measured seconds per image of a forward pass, and of a forward and backward pass."""
    count = min(IMAGES, len(data))
    x = data.batch(torch.arange(count))[0].to(device_of(model))

    def time_passes(backward: bool) -> float:
        began = time.perf_counter()
        with torch.set_grad_enabled(backward):
            moving = x.clone().requires_grad_(backward)
            out = model(moving)
            if backward:
                torch.autograd.grad(out.float().sum(), moving)
        if x.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    model.eval()
    both = [median([time_passes(backward) for _ in range(REPEATS + 1)][1:]) for backward in (False, True)]
    return both[0], max(both)


def estimate(job: SuiteJob) -> Iterator[Line]:
    """Yield a line for each part of a job; a network that is not trained yet is timed with its initial weights."""
    ready = None
    if job.spec.is_trained:
        config = job.train_config()
        ready = prepare(config)
    for name in job.suite.data:
        data = job.load_images(name)
        trained = not job.spec.is_trained or (job.train_folder() / WEIGHTS).is_file()
        model = job.load(data) if trained or ready is None else build_model(**ready.spec)
        forward, both = seconds_per_pass(model, data)
        if ready is not None and name == next(iter(job.suite.data)):
            yield training_line(job.model, job.train_config(), both, len(ready.train), finished=trained)
        for cell in job.cells(name):
            forwards, backwards = count_passes(cell.attack, data.num_classes)
            total = count_images(cell, job, data)
            done = count_finished(cell, job, total)
            cost = max(forwards - backwards, 0) * forward + backwards * both
            yield Line(
                model=job.model,
                data=name,
                attack=cell.attack.name,
                seed=cell.seed,
                done=done,
                images=total,
                forwards=forwards,
                backwards=backwards,
                seconds=(total - done) * cost,
            )


def training_line(model: str, config: Config, both: float, images: int, *, finished: bool) -> Line:
    """Return the line for a training run, in which a step costs the attack's passes plus two."""
    passes = config.train.epochs * (config.attack.steps + 2)
    return Line(
        model=model,
        data=config.data.name,
        attack=f"training, {config.train.epochs} epochs",
        seed=config.seed,
        done=images if finished else 0,
        images=images,
        forwards=passes,
        backwards=passes,
        seconds=0.0 if finished else images * passes * both,
    )


def estimate_table(job: Job) -> Iterator[Line]:
    """Yield a line for the training of a network of a paper's table, and for each attack on it."""
    ready = prepare(job.config)
    forward, both = seconds_per_pass(build_model(**ready.spec), ready.test)
    trained = (job.folder / WEIGHTS).is_file()
    yield training_line(job.name, job.config, both, len(ready.train), finished=trained)
    for attack in job.attacks:
        test = spread(ready.test, attack.limit) if attack.limit else ready.test
        forwards, backwards = count_passes(attack.protocol, test.num_classes)
        done = min(len(test), count_rows(job.evaluation_folder(attack)))
        yield Line(
            model=job.name,
            data=job.config.data.name,
            attack=attack.name,
            seed=job.config.seed,
            done=done,
            images=len(test),
            forwards=forwards,
            backwards=backwards,
            seconds=(len(test) - done) * ((forwards - backwards) * forward + backwards * both),
        )


def count_images(cell: Cell, job: SuiteJob, data: Dataset) -> int:
    """Return the number of images of a cell, or of the job's shard of it."""
    first = 0 if isinstance(cell.attack, Sweep) else cell.attack.first
    n = min(first, len(data)) if first else len(data)
    index, shards = job.shard or (1, 1)
    return len(range(index - 1, n, shards))


def count_finished(cell: Cell, job: SuiteJob, total: int) -> int:
    """Return the number of finished images of a cell; for a sweep, the average over its parts."""
    folder = cell.folder
    if folder is None:
        return 0
    places = [folder if job.shard is None else shard_folder(folder, job.shard)]
    if isinstance(cell.attack, Sweep):
        places = [places[0] / part.name for part in cell.attack.parts]
    return min(total, sum(count_rows(place) for place in places) // len(places))


def count_rows(folder: Path) -> int:
    return len(read_ledger(folder)[1]) if (folder / LEDGER).is_file() else 0
