"""Control of the C library's heap: keep freed memory in the process for reuse, or return it to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

#: parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: the largest threshold that glibc accepts, and one that no process reaches
_LARGEST_MMAP_THRESHOLD, _NEVER_TRIM = 32 << 20, 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory in this process until it ends; does nothing without glibc.

    By default glibc returns the memory of large tensors at once, and a small network then spends a tenth of each pass
    on page faults. Call this only in worker processes, because it cannot be undone.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)


def return_freed_memory() -> None:
    """Return freed memory to the system; does nothing without glibc.

    Call this before a fork, because the children would otherwise copy the free pages when they reuse them.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
