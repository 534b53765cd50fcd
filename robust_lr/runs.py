"""Run folders: one training run on disk, which can be stopped at any step and resumed to the bit.

config.toml           the config as resolved
provenance.json       versions, device, precision, processes, hashes
metrics.jsonl         one line a step; the last of an epoch has the test accuracy, and that of a validation its own
weights.safetensors   the network, averaged if the config says so, with all that is needed to build it
best.safetensors      the same, when robust accuracy on the held-out images was highest
states/               the last states (network, momentum, average, step), to resume from
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import data as data_room
from .augment import TRANSFORMS
from .checkpoint import BEST
from .config import Config
from .dataset import Dataset, content_hash
from .distributed import Group, joined, local_device
from .errors import InputError, RunError
from .folder import CONFIG, METRICS, PROVENANCE, locked, open_folder, read_metrics, robust_accuracies
from .lazy import Transform
from .models import build_model
from .provenance import device_name, versions
from .record import Record, restore, state_of, summary_writer
from .rng import HELD_OUT, words
from .signals import Interrupted, heeded
from .states import State
from .train import Metrics, adversarial_train, averaged, check, passes, sgd
from .validate import accuracy, protocol

__all__ = [
    "CONFIG",
    "METRICS",
    "PROVENANCE",
    "Interrupted",
    "pick_device",
    "prepare",
    "read_metrics",
    "spread",
    "train_run",
]

#: a killed run loses at most this much
SAVE_SECONDS = 300.0


def train_run(config: Config, folder: str | Path, *, resume: bool = False) -> Iterator[Metrics]:
    """Train as ``config`` says and keep everything in ``folder``; yields after every step.

    Under torchrun all its processes train together, and the first writes. SIGINT, SIGTERM and SIGHUP are heeded
    between steps: the state is saved, then ``Interrupted`` raised.

    Raises:
        InputError: ``folder`` holds a run and ``resume`` is off, holds one of another config, or another process
            trains there; anything wrong in the config.
        RunError: the loss or a weight is not finite, robust accuracy collapsed, or the disk is full; the last saved
            state stays.
    """
    device = local_device(pick_device(config.train.device))
    with joined(device) as group:
        yield from _train_run(config, Path(folder), resume, group)


def _train_run(config: Config, folder: Path, resume: bool, group: Group) -> Iterator[Metrics]:
    train_data, test_data, spec = prepare(config)
    validation_data = held_out(config)
    passes(config, group.size)
    if config.output.tensorboard:
        summary_writer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: nn.Module = build_model(**spec)
    model = model.to(group.device)
    optimizer, average = sgd(model, config.train), averaged(model, config.train)
    kept = model if average is None else average.module
    data_hash = content_hash(train_data)
    provenance = {
        "versions": versions(),
        "device": device_name(group.device),
        "processes": group.size,
        "precision": {"training": config.compute.precision, "attack": config.compute.attack_precision},
        "model": spec,
        "data_sha256": data_hash,
        "test_data_sha256": content_hash(test_data),
    }
    with ExitStack() as stack:

        def begin() -> tuple[State | None, list[float]]:
            stack.enter_context(locked(folder))
            found = open_folder(config, folder, data_hash, resume=resume)
            return found, [] if found is None else robust_accuracies(folder)

        state, robust = group.first(begin)
        start = restore(state, model, optimizer, average, folder)
        record = None
        if group.rank == 0:
            record = stack.enter_context(Record(config, folder, spec, provenance).opened(start, robust))
        received = stack.enter_context(heeded())
        for step in adversarial_train(
            model, train_data, config, optimizer=optimizer, start_step=start, average=average, group=group
        ):
            end_of_epoch = step.epoch == int(step.epoch)
            if end_of_epoch:
                right = accuracy(kept, test_data, **reading(config), group=group)
                step = replace(step, test_accuracy=right)
            if validation_data is not None and due(step, config.validation.every):
                step = validated(step, kept, validation_data, config, group)
            if record is not None:
                record.add(step, kept)
            if step.robust_accuracy is not None:
                if (
                    robust
                    and config.validation.max_drop
                    and step.robust_accuracy < robust[-1] - config.validation.max_drop
                ):
                    raise group.one_voice(collapsed(step, robust[-1], step.robust_accuracy))
                robust.append(step.robust_accuracy)
            if record is not None and (end_of_epoch or time.monotonic() - record.saved > SAVE_SECONDS):
                record.save(step, state_of(model, optimizer, average), kept)
            yield step
            stop = group.largest(received[0] if received else 0)
            if stop and step.step < step.steps:
                if record is not None:
                    record.save(step, state_of(model, optimizer, average), kept)
                group.wait()
                raise group.one_voice(Interrupted(stop, step.step, step.steps, folder), 128 + stop)


def due(step: Metrics, every: int) -> bool:
    """Whether a validation follows this step: the last of every ``every``-th epoch, and of the run."""
    return step.epoch == int(step.epoch) and (int(step.epoch) % every == 0 or step.step == step.steps)


def validated(step: Metrics, model: nn.Module, data: Dataset, config: Config, group: Group) -> Metrics:
    """``step`` with the accuracies on the held-out images."""
    clean = accuracy(model, data, **reading(config), group=group)
    robust = accuracy(model, data, protocol(config), seed=config.seed, **reading(config), group=group)
    return replace(step, validation_accuracy=clean, robust_accuracy=robust)


def reading(config: Config) -> dict[str, Any]:
    """How ``accuracy`` loads images."""
    return {"workers": config.data.workers, "skip": config.data.unreadable == "skip"}


def collapsed(step: Metrics, before: float, now: float) -> RunError:
    return RunError(
        f"robust accuracy on the held-out images fell from {100 * before:.1f} % to {100 * now:.1f} % by epoch "
        f"{step.epoch:g}: catastrophic over-fitting (validation.max_drop); {BEST} has the best weights; take more "
        "attack steps, a smaller attack.step_size or a smaller train.lr"
    )


def prepare(config: Config) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Training data, which have been checked, test data and the arguments of ``build_model``."""
    c = config.data
    train_data = limited(config, TRANSFORMS.get(c.augment))
    test_data = data_room.load(c.name, "test", c.root)
    if config.validation.images:
        kept = torch.ones(len(train_data), dtype=torch.bool)
        kept[validation_rows(config, train_data)] = False
        train_data = train_data.subset(kept.nonzero()[:, 0])
    check(train_data, config)
    shape = train_data.image_shape
    return train_data, test_data, {**config.model, "num_classes": train_data.num_classes, "in_channels": shape[0]}


def held_out(config: Config) -> Dataset | None:
    """The training images that are only validated on, without random transformations."""
    if not config.validation.images:
        return None
    data = limited(config, None)
    return data.subset(validation_rows(config, data))


def validation_rows(config: Config, data: Dataset) -> Tensor:
    """Positions of the held-out images of ``data``: drawn by id, the same for every seed."""
    images, batch_size, n = config.validation.images, config.train.batch_size, len(data)
    if images > n - batch_size:
        raise InputError(
            f"validation.images = {images}: of {n} training images at least train.batch_size = {batch_size} must "
            "be left to learn from"
        )
    return words(0, HELD_OUT, data.ids, 1)[:, 0].argsort(stable=True)[:images].sort().values


def limited(config: Config, transform: Transform | None) -> Dataset:
    """The training split, or ``data.limit`` images of it."""
    c = config.data
    data = data_room.load(c.name, "train", c.root, transform=transform)
    return spread(data, c.limit) if c.limit else data


def spread(data: Dataset, n: int) -> Dataset:
    """``n`` images, evenly spaced in the order of ``data``: folders are sorted by class, the first n would be one."""
    if not 1 <= n <= len(data):
        raise InputError(f"limit = {n}: {data.name} has {len(data)} images")
    return data.subset(torch.arange(n) * len(data) // n)


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise InputError(
            f"device {name!r} is not available here: use 'auto' or 'cpu', or 'cuda' on a GPU machine"
        ) from None
    return device
