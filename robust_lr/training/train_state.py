"""Training states of a run: the newest few are kept, with checksums, so that a damaged one can be skipped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..models.checkpoint import read_tensors, tensors_hash, write_tensors
from ..utils.errors import InputError

log = logging.getLogger(__name__)

STATES = "states"

#: tensors by name, and metadata
State = tuple[dict[str, Tensor], dict[str, str]]


def list_states(folder: Path) -> list[Path]:
    """List the files of a run's states, newest first."""
    return sorted((folder / STATES).glob("step-*.safetensors"), reverse=True)


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, str], *, keep: int) -> None:
    """Write the state after ``step`` atomically, then delete all but the ``keep`` newest states."""
    metadata = {**about, "step": str(step), "sha256": tensors_hash(dict(sorted(tensors.items())))}
    write_tensors(folder / STATES / f"step-{step:010d}.safetensors", tensors, metadata)
    for file in list_states(folder)[keep:]:
        file.unlink()


def read_state(file: Path) -> State:
    """Read a state; InputError if the file is truncated or its checksum is wrong."""
    tensors, metadata = read_tensors(file)
    if tensors_hash(dict(sorted(tensors.items()))) != metadata.get("sha256"):
        raise InputError(f"{file}: its content does not match its checksum")
    return tensors, metadata


def newest_state(folder: Path) -> State | None:
    """Return the newest readable state, or None if there are no states; log and delete damaged ones newer than it.

    Raises:
        InputError: all states are damaged.
    """
    damaged: list[Path] = []
    for file in list_states(folder):
        try:
            state = read_state(file)
        except InputError as error:
            log.warning("%s; trying the previous state", error)
            damaged.append(file)
            continue
        for broken in damaged:
            broken.unlink()
        if damaged:
            log.warning("continuing from step %s, %s", int(state[1]["step"]), file)
        return state
    if damaged:
        raise InputError(f"{folder}: no saved state can be read; start a new run in another folder with `out`")
    return None
