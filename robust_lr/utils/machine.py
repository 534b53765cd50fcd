"""The machine's processors and memory, and counts that must not exceed them."""

from __future__ import annotations

import os

from .errors import InputError

#: processes or threads beyond this many for each core only take memory and time from each other
MAX_PER_CORE = 4
#: as many processes are always allowed, so that tests and small machines can oversubscribe a little
MIN_MAX_PROCESSES = 8


def count_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit() -> int:
    """Return the bytes of memory that the machine has, or that the control group of this process allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def max_processes() -> int:
    return max(MIN_MAX_PROCESSES, MAX_PER_CORE * count_cores())


def check_processes(**counts: int) -> None:
    """Refuse more processes than the machine can run.

    Raises:
        InputError: a count is too large; the message names it and the most that is allowed.
    """
    for name, count in counts.items():
        if not 0 <= count <= max_processes():
            raise InputError(
                f"{name} = {count}: must be at least 0 and at most {max_processes()}, as this machine has {_cores()} "
                "and each is a process of its own"
            )


def check_threads(threads: int) -> None:
    """Refuse more threads than ``max_processes``, as PyTorch would start them all."""
    if not 0 <= threads <= max_processes():
        raise InputError(
            f"threads = {threads}: must be at least 0 and at most {max_processes()} on this machine ({_cores()})"
        )


def check_batch(name: str, images: int, values: int) -> None:
    """Refuse a batch of ``images``, each of ``values`` float32 numbers, that would not fit half of the memory.

    Raises:
        InputError: the batch is too large; the message names the parameter and the largest batch.
    """
    most = max(1, memory_limit() // 2 // (4 * max(values, 1)))
    if images > most:
        raise InputError(f"{name} = {images}: at most {most} such images fit this machine's memory; take fewer")


def _cores() -> str:
    return f"{count_cores()} core{'' if count_cores() == 1 else 's'}"
