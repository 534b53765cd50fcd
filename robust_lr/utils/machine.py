"""The machine's processors and memory, and checks that a request does not exceed them."""

from __future__ import annotations

import os

from .errors import InputError

#: maximum number of processes or threads per core; more would only compete for time and memory
MAX_PER_CORE = 4
#: lower bound of the maximum, which lets tests and small machines oversubscribe their cores
MIN_MAX_PROCESSES = 8


def count_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit() -> int:
    """Return the machine's memory in bytes, or the limit of this process's control group if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def max_processes() -> int:
    """Return the maximum number of processes, or of threads in one, that a user may ask for on this machine."""
    return max(MIN_MAX_PROCESSES, MAX_PER_CORE * count_cores())


def check_processes(**counts: int) -> None:
    """Check that every count is between 0 and ``max_processes``.

    Raises:
        InputError: a count is out of range; the message names it and the maximum.
    """
    for name, count in counts.items():
        if not 0 <= count <= max_processes():
            raise InputError(
                f"{name} = {count}: must be at least 0 and at most {max_processes()} processes on this machine "
                f"({_cores()})"
            )


def check_threads(threads: int) -> None:
    """Raise an InputError for more threads than ``max_processes``, because PyTorch would start them all."""
    if not 0 <= threads <= max_processes():
        raise InputError(
            f"threads = {threads}: must be at least 0 and at most {max_processes()} on this machine ({_cores()})"
        )


def check_batch(name: str, images: int, values: int) -> None:
    """Check that ``images`` of ``values`` float32 numbers each fit in half of the machine's memory.

    Raises:
        InputError: the batch is too large; the message names the parameter and the largest batch that fits.
    """
    most = max(1, memory_limit() // 2 // (4 * max(values, 1)))
    if images > most:
        raise InputError(f"{name} = {images}: at most {most} images of this size fit in memory; set it lower")


def _cores() -> str:
    return f"{count_cores()} core{'' if count_cores() == 1 else 's'}"
