"""Training runs in folders, which can be stopped at any step and resumed with bit-identical results.

config.toml           the resolved config
provenance.json       versions, device, precision, processes, hashes
metrics.jsonl         one line per step; the last step of an epoch adds the test accuracy and validation accuracies
weights.safetensors   the network (the averaged weights if ``train.ema`` is set) and the arguments that build it
best.safetensors      the same, at the step with the highest robust accuracy on the held-out images
states/               the latest training states (network, momentum, average, step), to resume from
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data as data_room
from ..config.training import Config
from ..data.augmentation import TRANSFORMS
from ..data.dataset import Dataset, content_hash, spread
from ..data.encoded import LazyDataset
from ..models.build import build_model
from ..models.checkpoint import BEST
from ..utils.devices import device_of_process, pick_device
from ..utils.errors import InputError, RunError
from ..utils.provenance import device_name, versions
from ..utils.rng import HELD_OUT, words
from .distributed import Group, join_group
from .loop import adversarial_train, check_trainable, make_optimizer, micro_batches, moving_average
from .metrics import Metrics
from .run_folder import CONFIG, METRICS, PROVENANCE, lock_folder, open_folder, read_metrics, robust_accuracies
from .run_writer import Record, restore_state, state_of, summary_writer
from .signals import Interrupted, collect_stop_signals
from .train_state import State
from .validation import accuracy, validation_protocol

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

#: seconds between saved states: a killed run loses at most this much work
SAVE_SECONDS = 300.0


def train_run(config: Config, folder: str | Path, *, resume: bool = False) -> Iterator[Metrics]:
    """Train as set in ``config``, save everything in ``folder``, and yield the metrics of every step.

    Under torchrun, all processes train together, and the first one writes. SIGINT, SIGTERM and SIGHUP take effect
    between steps: the state is saved, then ``Interrupted`` is raised.

    Raises:
        InputError: ``folder`` holds a run and ``resume`` is False, holds a run with another config, or another process
            is training there; or the config is invalid.
        RunError: the loss or a weight is not finite, robust accuracy collapsed, or the disk is full; the last saved
            state is kept.
    """
    device = pick_device(device_of_process(config.train.device))
    with join_group(device) as group:
        yield from _train_run(config, Path(folder), resume, group)


def _train_run(config: Config, folder: Path, resume: bool, group: Group) -> Iterator[Metrics]:
    ready = group.run_on_all(partial(prepare, config, group.size))
    if not group.agrees_on(content_hash(ready.train, images=False)):
        error = InputError(
            f"{config.data.name}: the processes have different training images; give all machines the same data set"
        )
        raise group.error_of_rank(error, 2)
    model = group.run_on_all(partial(new_network, ready.spec, config.seed)).to(group.device)
    optimizer, average = make_optimizer(model, config.train), moving_average(model, config.train)
    kept = model if average is None else average.module
    with ExitStack() as stack:

        def begin() -> tuple[State | None, list[float], dict[str, str]]:
            stack.enter_context(lock_folder(folder))
            hashes = {"data_sha256": content_hash(ready.train), "test_data_sha256": content_hash(ready.test)}
            found = open_folder(config, folder, hashes["data_sha256"], resume=resume)
            return found, [] if found is None else robust_accuracies(folder), hashes

        state, robust, hashes = group.run_on_first(begin)
        start = restore_state(state, model, optimizer, average, folder)
        provenance = {
            "versions": versions(),
            "device": device_name(group.device),
            "processes": group.size,
            "precision": {"training": config.compute.precision, "attack": config.compute.attack_precision},
            "model": ready.spec,
            **hashes,
        }
        record = Record(config, folder, ready.spec, provenance) if group.rank == 0 else None
        group.run_on_all(partial(stack.enter_context, nullcontext() if record is None else record.open(start)))

        def save(step: Metrics) -> None:
            if record is not None:
                record.save(step, state_of(model, optimizer, average), kept)

        def write(step: Metrics, best: bool, collapsed: bool) -> None:
            if record is not None:
                record.add(step, kept if best else None)
                if not collapsed and (step.ends_epoch or time.monotonic() - record.saved > SAVE_SECONDS):
                    save(step)

        received = stack.enter_context(collect_stop_signals())
        for step in adversarial_train(
            model, ready.train, config, optimizer=optimizer, start_step=start, average=average, group=group
        ):
            if step.ends_epoch:
                right = accuracy(kept, ready.test, **loading_options(config), group=group)
                step = replace(step, test_accuracy=right)
            if ready.validation is not None and is_validation_due(step, config.validation.every):
                step = validate(step, kept, ready.validation, config, group)
            collapsed = detect_collapse(step, robust, config.validation.max_drop)
            best = step.robust_accuracy is not None and step.robust_accuracy > max(robust, default=-1.0)
            group.run_on_all(partial(write, step, best, collapsed is not None))
            if collapsed is not None:
                raise group.error_of_rank(collapsed)
            robust += [] if step.robust_accuracy is None else [step.robust_accuracy]
            yield step
            stop = group.maximum(received[0] if received else 0)
            if stop and step.step < step.steps:
                group.run_on_all(partial(save, step))
                raise group.error_of_rank(Interrupted(stop, step.step, step.steps, folder), 128 + stop)


def new_network(spec: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a network whose initial weights are drawn with ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(**spec)


def is_validation_due(step: Metrics, every: int) -> bool:
    """Return True after the last step of every ``every``-th epoch, and after the last step of the run."""
    return step.ends_epoch and (int(step.epoch) % every == 0 or step.step == step.steps)


def validate(step: Metrics, model: nn.Module, data: Dataset, config: Config, group: Group) -> Metrics:
    """Add the accuracies on the held-out images to ``step``."""
    clean = accuracy(model, data, **loading_options(config), group=group)
    robust = accuracy(
        model, data, validation_protocol(config), seed=config.seed, **loading_options(config), group=group
    )
    return replace(step, validation_accuracy=clean, robust_accuracy=robust)


def loading_options(config: Config) -> dict[str, Any]:
    """Return the options of ``accuracy`` that control how images are loaded."""
    return {"workers": config.data.workers, "skip": config.data.unreadable == "skip"}


def detect_collapse(step: Metrics, before: Sequence[float], most: float) -> RunError | None:
    """Return an error if robust accuracy fell by more than ``most`` since the last validation; never if it is 0."""
    now = step.robust_accuracy
    if now is None or not before or not most or now >= before[-1] - most:
        return None
    return RunError(
        f"robust accuracy on the held-out images fell from {100 * before[-1]:.1f} % to {100 * now:.1f} % by epoch "
        f"{step.epoch:g}: catastrophic overfitting, a drop of more than validation.max_drop = {most:g}; {BEST} has the "
        "best weights; use more attack steps, a smaller attack.step_size or a smaller train.lr"
    )


@dataclass(frozen=True)
class Ready:
    """Checked inputs of a run: images for training, test and validation, and the arguments of ``build_model``."""

    train: Dataset
    test: Dataset
    validation: Dataset | None
    spec: dict[str, Any]


def prepare(config: Config, processes: int = 1) -> Ready:
    """Load the data of ``config`` and check that ``config`` can be trained on them in ``processes`` processes."""
    c = config.data
    train, validation = data_room.load(c.name, "train", c.root), None
    train = spread(train, c.limit) if c.limit else train
    if config.validation.images:
        held = torch.zeros(len(train), dtype=torch.bool)
        held[validation_rows(config, train)] = True
        train, validation = (train.subset(rows.nonzero()[:, 0]) for rows in (~held, held))
    check_trainable(train, config)
    micro_batches(config, processes)
    if c.augment in TRANSFORMS and isinstance(train, LazyDataset):
        train = train.transformed(TRANSFORMS[c.augment])
    if config.output.tensorboard:
        summary_writer()
    spec = {**config.model, "num_classes": train.num_classes, "in_channels": train.image_shape[0]}
    return Ready(train, data_room.load(c.name, "test", c.root), validation, spec)


def validation_rows(config: Config, data: Dataset) -> Tensor:
    """Return the positions of the held-out images, which are chosen by their ids and the same for every seed."""
    images, batch_size, n = config.validation.images, config.train.batch_size, len(data)
    if images > n - batch_size:
        raise InputError(
            f"validation.images = {images}: of {n} training images, at least train.batch_size = {batch_size} must "
            f"remain for training; hold out at most {max(0, n - batch_size)}"
        )
    return words(0, HELD_OUT, data.ids, 1)[:, 0].argsort(stable=True)[:images]
