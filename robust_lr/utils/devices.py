"""Choose the device of a process, alone or under torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import torch

from .errors import InputError

CPU = torch.device("cpu")

#: sent by Ctrl-C, by a job system that ends a job, and by a terminal that is closed
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def pick_device(name: str) -> torch.device:
    """Return the device ``name``; "auto" means CUDA if available, else the CPU. InputError if it is not available."""
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
    """Return the shard (index from 1, count) of this process under torchrun, or None for a single process."""
    world = environment.get("WORLD_SIZE", "1")
    rank = environment.get("RANK", "0")
    if not (world.isdecimal() and rank.isdecimal() and int(rank) < int(world)):
        raise InputError(f"RANK={rank}, WORLD_SIZE={world}: torchrun sets whole numbers, 0 <= RANK < WORLD_SIZE")
    return (int(rank) + 1, int(world)) if int(world) > 1 else None


def under_torchrun() -> bool:
    """Return True if torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def device_of_process(name: str) -> str:
    """Return ``name``, or under torchrun the GPU of this process, chosen by its local rank.

    Training and attacks run one process per GPU. The GPU becomes the current device before any GPU is used, because
    otherwise every process would allocate memory on the first one.

    Raises:
        InputError: more processes than GPUs, or one GPU named for several processes.
    """
    if not under_torchrun() or not torch.cuda.is_available() or not name.startswith(("auto", "cuda")):
        return name
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if ":" in name and int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        raise InputError(
            f"device {name!r} cannot be shared by {os.environ['LOCAL_WORLD_SIZE']} processes: use 'cuda', which gives "
            "each a GPU"
        )
    if ":" in name:
        return name
    if number >= count:
        raise InputError(
            f"there is no GPU for process {number} of this machine, which has {count}: start at most {count} processes"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"
