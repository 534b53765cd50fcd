"""The folder of a run: opened, locked and read; what is written there is in runs.py."""

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

#: keys that say where and how to compute, not what to learn; they may differ when a run is resumed. Like the number of
#: processes, `compute.micro_batch` says how many images batch norm sees: fewer processes keep that with more passes.
FREE = (
    *("train.device", "train.threads", "compute.micro_batch"),
    *("data.workers", "data.root", "output.keep", "output.tensorboard"),
)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process as long as it lives; InputError if another process trains there."""
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
    """Return True if a process trains in ``folder``, on this machine or where the file system shares locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # a file system without locks must not keep anybody from training
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def open_folder(config: Config, folder: Path, data_hash: str, *, resume: bool) -> State | None:
    """Begin a run in ``folder``, or take up the one that is there: its newest readable state."""
    file = folder / CONFIG
    if not file.exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run: choose another folder")
        try:
            write_atomic(file, to_toml(config).encode())
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from None
        return None
    if not resume:
        raise InputError(
            f"{folder} already holds a run: resume it with `resume`, start anew with `fresh`, or choose another folder "
            "with `out`"
        )
    same_config(from_dict(read_toml(file)), config, folder)
    state = newest_state(folder)
    if state is None:
        (folder / METRICS).unlink(missing_ok=True)
        return None
    if state[1].get("data_sha256") != data_hash:
        raise InputError(f"{folder} holds a run on other images: give the same, or choose another folder with `out`")
    keep_metrics(folder / METRICS, int(state[1]["step"]))
    return state


def clear_folder(config: Config, folder: Path) -> None:
    """Remove the run in ``folder``, but nothing else that lies there, and leave ``config`` to be run.

    Raises:
        InputError: another process trains there.
    """
    if not (folder / CONFIG).is_file():
        return
    with lock_folder(folder):
        for name in (METRICS, PROVENANCE, WEIGHTS, BEST):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / STATES, ignore_errors=True)
        write_atomic(folder / CONFIG, to_toml(config).encode())


def same_config(before: Config, now: Config, folder: Path) -> None:
    """InputError, with the first difference, unless both configs would train the same weights."""
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
    """Drop the lines of steps after the saved state, because these steps will be repeated."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if len(lines) > step:
        write_atomic(file, "".join(lines[:step]).encode())


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Read the steps of a run, each as a dict of the fields of ``Metrics``."""
    return [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]


def robust_accuracies(folder: Path) -> list[float]:
    """Return the robust accuracies of all validations so far."""
    return [line["robust_accuracy"] for line in read_metrics(folder) if "robust_accuracy" in line]
