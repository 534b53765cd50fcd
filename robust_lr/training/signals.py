"""Signals that tell a run to stop; they are acted on between steps, so that its state is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.devices import STOPPING, under_torchrun
from ..utils.errors import RunError


class Interrupted(RunError):
    """A run that was told to stop, saved its state and did."""

    def __init__(self, number: int, step: int, steps: int, folder: Path):
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {self.signal.name} after step {step} of {steps}; {folder} is saved, `resume` goes on"
        )


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collect stop signals in a list instead of ending the process.

    A second signal has its usual effect, but not under torchrun, which hands signals on to processes that the job
    system may signal, too. It kills them itself when they take too long (its ``--shutdown-timeout``).
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before = {n: handler for n in STOPPING if (handler := signal.getsignal(n)) != signal.SIG_IGN}

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if not under_torchrun():
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
