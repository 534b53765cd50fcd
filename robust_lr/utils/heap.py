"""Control of the C library's heap: keep the memory that one pass has freed for the next, or give it back."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

#: parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: the most that glibc takes, and more than any process has
_LARGEST_MMAP_THRESHOLD, _NEVER_TRIM = 32 << 20, 2**31 - 1


def keep_freed_memory() -> None:
    """Do not give freed memory back to the system before the process ends.

    glibc returns large tensors at once, and every pass of a small network then spends a tenth of its time on page
    faults. Only worker processes call this, because it cannot be undone.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)


def return_freed_memory() -> None:
    """Give the memory that has been freed back to the system.

    A process does this before it forks: its children would otherwise copy the free pages as they reuse them.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
