"""Choose the device of a process, alone or under torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import torch

from .errors import InputError

#: Ctrl-C, the end of a job, a terminal that was closed
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def pick_device(name: str) -> torch.device:
    """Return the device of that name, where "auto" is CUDA if there is one; InputError if it is not available."""
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


def torchrun_shard(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return the shard (index, count) of this process under torchrun, or None without it."""
    world = environment.get("WORLD_SIZE", "1")
    rank = environment.get("RANK", "0")
    if not (world.isdecimal() and rank.isdecimal() and int(rank) < int(world)):
        raise InputError(f"RANK={rank}, WORLD_SIZE={world}: torchrun sets whole numbers, 0 <= RANK < WORLD_SIZE")
    return (int(rank) + 1, int(world)) if int(world) > 1 else None


CPU = torch.device("cpu")


def under_torchrun() -> bool:
    """Return True if torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def device_of_process(name: str) -> str:
    """Return the device ``name``, or among several GPUs the one that torchrun gives to this process.

    There is one process per GPU, in training as in attacks. The GPU is made the current one before any is used;
    otherwise every process would take memory on the first.

    Raises:
        InputError: more processes than GPUs, or one GPU for several processes.
    """
    if not under_torchrun() or not torch.cuda.is_available() or not name.startswith(("auto", "cuda")):
        return name
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if ":" in name and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise InputError(f"device {name!r} cannot be that of {os.environ['LOCAL_WORLD_SIZE']} processes: take 'cuda'")
    if ":" in name:
        return name
    if number >= count:
        raise InputError(
            f"process {number} of this machine has no GPU of its own, there are {count}; start one process a GPU"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
