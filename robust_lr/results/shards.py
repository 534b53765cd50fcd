"""Parse shards, name their folders, and merge them when all are finished."""

from __future__ import annotations

import re
from pathlib import Path

from ..utils.errors import InputError
from .curve import CURVE, Curve, merge_sweep
from .merge import merge
from .result import Result
from .stored import LEDGER, RESULT, read_ledger


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard: "2/4" becomes (2, 4); InputError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard {text!r}: write i/n with 1 <= i <= n, e.g. 1/4")
    return int(match[1]), int(match[2])


def shard_folder(out: Path, shard: tuple[int, int]) -> Path:
    """Return the folder of a shard (index from 1, count) below ``out``."""
    return out / f"shard-{shard[0]}-of-{shard[1]}"


def merge_when_complete(out: Path, count: int) -> Result | None:
    """Merge the ``count`` shards below ``out`` if all are finished, as they are for the last process to finish."""
    folders = [shard_folder(out, (index, count)) for index in range(1, count + 1)]
    return merge(folders, out, fresh=True) if all(map(is_finished, folders)) else None


def merge_sweep_when_complete(out: Path, count: int) -> Curve | None:
    """Merge the ``count`` shards of a sweep below ``out`` if all are finished."""
    folders = [shard_folder(out, (index, count)) for index in range(1, count + 1)]
    return merge_sweep(folders, out, fresh=True) if all((folder / CURVE).is_file() for folder in folders) else None


def is_finished(folder: Path) -> bool:
    """Return True if ``folder`` holds a finished evaluation."""
    if not (folder / RESULT).is_file() or not (folder / LEDGER).is_file():
        return False
    configuration, rows = read_ledger(folder)
    return len(rows) == int(configuration["images"])
