"""The folder of a run: opening, locking and reading. ``run.py`` lists its files, and ``run_writer.py`` writes them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.training import Config, from_dict, to_dict, to_toml
from ..models.checkpoint import BEST, WEIGHTS
from ..utils.errors import InputError
from ..utils.files import write_atomic
from ..utils.toml import read_toml
from .train_state import STATES, State, newest_state

CONFIG, METRICS, PROVENANCE = "config.toml", "metrics.jsonl", "provenance.json"

#: keys that may differ when a run is resumed, because they say where and how to compute. `compute.micro_batch` is among
#: them so that fewer processes can split a batch into as many passes, which keeps the images per batch norm the same.
FREE = (
    *("train.device", "train.threads", "compute.micro_batch"),
    *("data.workers", "data.root", "output.keep", "output.tensorboard"),
)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create ``folder`` if needed and lock it for this process; InputError if another process is training there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another folder for the run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from None
    try:
        if not _try_lock(handle):
            raise InputError(
                f"{folder}: another process is training in this folder; wait for it, stop it, or choose another folder"
            )
        yield
    finally:
        os.close(handle)


def in_use(folder: Path) -> bool:
    """Return True if a process is training in ``folder``, here or on a machine that shares the file system's locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # on a file system without locks, train without one
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def open_folder(config: Config, folder: Path, data_hash: str, *, resume: bool) -> State | None:
    """Start a run in ``folder``, or return the newest readable state of the run to resume; None for a start.

    Raises:
        InputError: the folder holds something else, a run that ``resume`` does not ask for, or a run with another
            config or other training images.
    """
    file = folder / CONFIG
    if not file.exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run: choose another folder with `out`")
        try:
            write_atomic(file, to_toml(config).encode())
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from None
        return None
    if not resume:
        raise InputError(
            f"{folder} already holds a run: continue it with `resume`, replace it with `fresh`, or choose another "
            "folder with `out`"
        )
    same_config(from_dict(read_toml(file)), config, folder)
    state = newest_state(folder)
    if state is None:
        (folder / METRICS).unlink(missing_ok=True)
        return None
    if state[1].get("data_sha256") != data_hash:
        raise InputError(
            f"{folder} holds a run on other training images: give the same data, or choose another folder with `out`"
        )
    keep_metrics(folder / METRICS, int(state[1]["step"]))
    return state


def clear_folder(config: Config, folder: Path) -> None:
    """Delete the files of the run in ``folder``, if any, and no others; then write ``config`` for a new run.

    Raises:
        InputError: another process is training there.
    """
    if not (folder / CONFIG).is_file():
        return
    with lock_folder(folder):
        for name in (METRICS, PROVENANCE, WEIGHTS, BEST):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / STATES, ignore_errors=True)
        write_atomic(folder / CONFIG, to_toml(config).encode())


def same_config(before: Config, now: Config, folder: Path) -> None:
    """Raise an InputError with the first difference unless both configs would train the same weights."""
    old, new = flatten(before), flatten(now)
    for key in [*new, *old]:
        if old.get(key) != new.get(key) and key not in FREE:
            raise InputError(
                f"{folder} holds a run with {key} = {old.get(key)!r}, now it is {new.get(key)!r}: use the same config, "
                "or choose another folder with `out`"
            )


def flatten(config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, section in json.loads(json.dumps(to_dict(config))).items():
        out.update({f"{name}.{k}": v for k, v in section.items()} if isinstance(section, dict) else {name: section})
    return out


def keep_metrics(file: Path, step: int) -> None:
    """Drop the lines after ``step``, that of the saved state, because later steps will be repeated."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if len(lines) > step:
        write_atomic(file, "".join(lines[:step]).encode())


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the metrics of every step of a run, as dicts of the fields of ``Metrics`` that are not None."""
    return [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]


def robust_accuracies(folder: Path) -> list[float]:
    """Return the robust accuracies of all validations so far."""
    return [line["robust_accuracy"] for line in read_metrics(folder) if "robust_accuracy" in line]
