"""Stop signals to a training run, which take effect between steps, after the state is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.devices import STOPPING, under_torchrun
from ..utils.errors import RunError


class Interrupted(RunError):
    """A stop signal ended the run, after its state was saved. The exit code is 128 + the signal's number."""

    def __init__(self, number: int, step: int, steps: int, folder: Path):
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {self.signal.name} after step {step} of {steps}; the state is saved in {folder}, continue "
            "with `resume`"
        )


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collect the numbers of received stop signals in a list instead of ending the process.

    A second signal has its usual effect, except under torchrun: it forwards signals to processes that the job system
    may already have signaled, and kills them itself if they take too long (its ``--shutdown-timeout``).
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
