"""Training states of a run: the newest few are kept, and checked when read, so that a damaged one costs little."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..models.checkpoint import read_tensors, tensors_hash, write_tensors
from ..utils.errors import InputError

log = logging.getLogger(__name__)

STATES = "states"

#: tensors, and what is said about them
State = tuple[dict[str, Tensor], dict[str, str]]


def states(folder: Path) -> list[Path]:
    """The files of a run's states, the newest first."""
    return sorted((folder / STATES).glob("step-*.safetensors"), reverse=True)


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, str], *, keep: int) -> None:
    """Write the state after ``step``, atomically; then drop all but the ``keep`` newest."""
    metadata = {**about, "step": str(step), "sha256": tensors_hash(dict(sorted(tensors.items())))}
    write_tensors(folder / STATES / f"step-{step:010d}.safetensors", tensors, metadata)
    for file in states(folder)[keep:]:
        file.unlink()


def read_state(file: Path) -> State:
    """InputError if the file is truncated or was changed after it was written."""
    tensors, metadata = read_tensors(file)
    if tensors_hash(dict(sorted(tensors.items()))) != metadata.get("sha256"):
        raise InputError(f"{file}: its content does not match its checksum")
    return tensors, metadata


def newest_state(folder: Path) -> State | None:
    """The newest state that can be read, None if there is none at all; damaged ones are named and removed.

    Raises:
        InputError: there are states, and all of them are damaged.
    """
    damaged: list[Path] = []
    for file in states(folder):
        try:
            state = read_state(file)
        except InputError as error:
            log.warning("%s; trying the state before it", error)
            damaged.append(file)
            continue
        for broken in damaged:
            broken.unlink()
        if damaged:
            log.warning("going on from step %s, %s", int(state[1]["step"]), file)
        return state
    if damaged:
        raise InputError(f"{folder}: no saved state can be read, begin anew in another folder with `out`")
    return None
