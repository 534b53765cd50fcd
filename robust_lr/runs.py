"""Run folders: one training run on disk, which can be stopped at any step and resumed to the bit.

config.toml           the config as resolved
provenance.json       versions, device, hashes
metrics.jsonl         one line a step; the last of an epoch has the test accuracy
weights.safetensors   the network, with all that is needed to build it
state.safetensors     network, momentum and step, to resume from
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import data as data_room
from .augment import TRANSFORMS
from .checkpoint import STATE, WEIGHTS, load_tensors, read_tensors, save_weights, weights_hash, write_tensors
from .config import Config, from_dict, read_toml, to_dict, to_toml
from .contexts import frozen
from .dataset import Dataset, content_hash
from .errors import InputError, RunError
from .loader import batches
from .models import build_model
from .provenance import device_name, versions
from .results import write_atomic, write_json
from .train import Metrics, adversarial_train, check, diverged, sgd

CONFIG, METRICS, PROVENANCE = "config.toml", "metrics.jsonl", "provenance.json"

#: a killed run loses at most this much
SAVE_SECONDS = 300.0


class Interrupted(RunError):
    """A run that was told to stop, saved its state and did."""

    def __init__(self, number: int, step: int, steps: int, folder: Path):
        self.signal = signal.Signals(number)
        super().__init__(
            f"stopped by {self.signal.name} after step {step} of {steps}; {folder} is saved, --resume goes on"
        )


def train_run(config: Config, folder: str | Path, *, resume: bool = False) -> Iterator[Metrics]:
    """Train as ``config`` says and keep everything in ``folder``; yields after every step.

    SIGINT and SIGTERM are heeded between steps: the state is saved, then ``Interrupted`` raised.

    Raises:
        InputError: ``folder`` holds a run and ``resume`` is off, or holds one of another config; anything wrong in
            the config.
        RunError: the loss or a weight is not finite; the last saved state stays.
    """
    folder = Path(folder)
    train_data, test_data, spec = prepare(config)
    device = pick_device(config.train.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: nn.Module = build_model(**spec)
    model = model.to(device)
    optimizer = sgd(model, config.train)
    data_hash = content_hash(train_data)
    start = open_folder(config, folder, model, optimizer, data_hash, resume=resume)
    about = {"data": config.data.name, "attack": config.attack.name, "seed": config.seed}
    provenance = {
        "versions": versions(),
        "device": device_name(device),
        "model": spec,
        "data_sha256": data_hash,
        "test_data_sha256": content_hash(test_data),
    }

    def save(step: int, steps: int) -> None:
        momentum = {f"momentum/{i}": s["momentum_buffer"] for i, s in optimizer.state_dict()["state"].items()}
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise diverged(f"{name} is not finite", step, steps, config.train)
        os.fsync(metrics.fileno())
        save_weights(folder / WEIGHTS, model, spec, {**about, "epoch": config.train.epochs * step / steps})
        progress = {"step": step, "steps": steps, "finished": step == steps, "weights_sha256": weights_hash(model)}
        write_json(folder / PROVENANCE, {**provenance, **progress})
        # last: a run that dies before this is done takes the steps again and writes all of it again
        write_tensors(folder / STATE, {**tensors, **momentum}, {"step": str(step), "data_sha256": data_hash})

    saved = time.monotonic()
    with (folder / METRICS).open("a", buffering=1) as metrics, signals() as received:
        for step in adversarial_train(model, train_data, config, optimizer=optimizer, start_step=start):
            end_of_epoch = step.epoch == int(step.epoch)
            if end_of_epoch:
                step = replace(step, test_accuracy=accuracy(model, test_data, workers=config.data.workers))
            metrics.write(json.dumps({k: v for k, v in asdict(step).items() if v is not None}) + "\n")
            if end_of_epoch or time.monotonic() - saved > SAVE_SECONDS:
                save(step.step, step.steps)
                saved = time.monotonic()
            yield step
            if received and step.step < step.steps:
                save(step.step, step.steps)
                raise Interrupted(received[0], step.step, step.steps, folder)


def prepare(config: Config) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Training data, which have been checked, test data and the arguments of ``build_model``."""
    c = config.data
    train_data = data_room.load(c.name, "train", c.root, transform=TRANSFORMS.get(c.augment))
    test_data = data_room.load(c.name, "test", c.root)
    if c.limit:
        train_data = spread(train_data, c.limit)
    check(train_data, config)
    shape = train_data.image_shape
    return train_data, test_data, {**config.model, "num_classes": train_data.num_classes, "in_channels": shape[0]}


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


def open_folder(
    config: Config, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, data_hash: str, *, resume: bool
) -> int:
    """Begin a run in ``folder``, or take up the one that is there; returns the number of steps already done."""
    file = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another folder for the run")
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run: choose another folder")
        try:
            write_atomic(file, to_toml(config).encode())
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from None
        return 0
    if not resume:
        raise InputError(f"{folder} already holds a run: resume it with --resume, or choose another folder with --out")
    same_config(from_dict(read_toml(file)), config, folder)
    if not (folder / STATE).exists():
        (folder / METRICS).unlink(missing_ok=True)
        return 0
    tensors, metadata = read_tensors(folder / STATE)
    if metadata.get("data_sha256") != data_hash:
        raise InputError(f"{folder} holds a run on other images: give the same, or choose another folder with --out")
    step = int(metadata["step"])
    own = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    load_tensors(model, own, folder / STATE)
    state = optimizer.state_dict()
    momentum = {int(name.removeprefix("momentum/")): t for name, t in tensors.items() if name.startswith("momentum/")}
    optimizer.load_state_dict({**state, "state": {i: {"momentum_buffer": t} for i, t in momentum.items()}})
    keep_metrics(folder / METRICS, step)
    return step


def same_config(before: Config, now: Config, folder: Path) -> None:
    """InputError, with the first difference, unless both configs would train the same weights."""
    old, new = flat(before), flat(now)
    for key in [*new, *old]:
        if old.get(key) != new.get(key) and key not in ("train.device", "train.threads", "data.workers", "data.root"):
            raise InputError(
                f"{folder} holds a run with {key} = {old.get(key)!r}, now it is {new.get(key)!r}: use the same config, "
                "or choose another folder with --out"
            )


def flat(config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, section in json.loads(json.dumps(to_dict(config))).items():
        out.update({f"{name}.{k}": v for k, v in section.items()} if isinstance(section, dict) else {name: section})
    return out


def keep_metrics(file: Path, step: int) -> None:
    """Drop the lines of steps that were never saved: they will be taken again."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if len(lines) > step:
        write_atomic(file, "".join(lines[:step]).encode())


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The steps of a run, as ``Metrics`` fields."""
    return [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]


def accuracy(model: nn.Module, data: Dataset, *, batch_size: int = 200, workers: int = 0) -> float:
    """Accuracy on clean images, in eval mode; the model's mode is afterwards as before."""
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    order = torch.split(torch.arange(len(data)), batch_size)
    with frozen(model), torch.no_grad():
        for x, y, _ in batches(data, order, workers=workers):
            right += (model(x.to(device)).argmax(1) == y.to(device)).sum()
    return int(right) / len(data)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one has its usual effect."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    both = (signal.SIGINT, signal.SIGTERM)
    before = {n: handler for n in both if (handler := signal.getsignal(n)) != signal.SIG_IGN}

    def handle(number: int, frame: object) -> None:
        received.append(number)
        for n, handler in before.items():
            signal.signal(n, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
