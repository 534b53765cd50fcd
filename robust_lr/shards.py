"""Which part of the images this process evaluates: as told, or as torchrun's environment says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .errors import InputError
from .evaluate import LEDGER, RESULT
from .evaluations import read_ledger
from .merge import merge
from .results import Result
from .sweep import CURVE, Curve, merge_sweep


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard {text!r}: write i/n with 1 <= i <= n, e.g. 1/4")
    return int(match[1]), int(match[2])


def torchrun_shard(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """One shard for each process that torchrun started, None without it."""
    world = environment.get("WORLD_SIZE", "1")
    rank = environment.get("RANK", "0")
    if not (world.isdecimal() and rank.isdecimal() and int(rank) < int(world)):
        raise InputError(f"RANK={rank}, WORLD_SIZE={world}: torchrun sets whole numbers, 0 <= RANK < WORLD_SIZE")
    return (int(rank) + 1, int(world)) if int(world) > 1 else None


def torchrun_device(environment: Mapping[str, str] = os.environ) -> str:
    """The GPU of this process among those of its machine; "auto" where there is none."""
    import torch

    rank = environment.get("LOCAL_RANK", "")
    count = torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if count and rank.isdecimal() else "auto"


def shard_folder(out: Path, shard: tuple[int, int]) -> Path:
    return out / f"shard-{shard[0]}-of-{shard[1]}"


def merge_when_complete(out: Path, count: int) -> Result | None:
    """Join the shards below ``out`` if all are finished: the last process to finish finds them so."""
    folders = [shard_folder(out, (index, count)) for index in range(1, count + 1)]
    return merge(folders, out, fresh=True) if all(map(finished, folders)) else None


def merge_sweep_when_complete(out: Path, count: int) -> Curve | None:
    """The same for the shards of a sweep."""
    folders = [shard_folder(out, (index, count)) for index in range(1, count + 1)]
    return merge_sweep(folders, out, fresh=True) if all((folder / CURVE).is_file() for folder in folders) else None


def finished(folder: Path) -> bool:
    if not (folder / RESULT).is_file() or not (folder / LEDGER).is_file():
        return False
    configuration, rows = read_ledger(folder)
    return len(rows) == int(configuration["images"])
