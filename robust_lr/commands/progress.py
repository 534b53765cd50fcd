"""Progress of long work on stderr: progress bars on a terminal, otherwise an occasional line."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from .terminal import console as stdout
from .terminal import duration

#: seconds between lines if the output is not a terminal
SECONDS_BETWEEN_LINES = 30.0
#: narrower terminals show no bar, to leave room for the numbers
MIN_WIDTH_FOR_BAR = 90


class StateColumn(ProgressColumn):
    """Column with the progress, the time left, the rate and the results so far."""

    def render(self, task: Task) -> Text:
        return Text(state_words(task))


class Bars:
    """One bar for each task; ``say`` prints a line above them."""

    def __init__(self, console: Console):
        self.console = console
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold", min_width=16)),
            *[BarColumn(bar_width=24)] * (console.width >= MIN_WIDTH_FOR_BAR),
            StateColumn(table_column=Column(no_wrap=True)),
        ]
        self.shown = Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            # training steps are slow, so estimate the speed over minutes
            speed_estimate_period=180,
        )
        self.printed = time.monotonic()

    def add(self, description: str, total: float | None = None, unit: str = "") -> TaskID:
        """Add a task; with a ``unit``, e.g. "images", its rate is shown."""
        return self.shown.add_task(description, total=total, unit=unit, found="")

    def update(
        self,
        task: TaskID,
        completed: float,
        total: float | None = None,
        description: str | None = None,
        visible: bool = True,
        found: str | None = None,
    ) -> None:
        """Advance a task; ``found`` describes its results so far, e.g. "robust 41.2 %"."""
        fields: dict[str, Any] = {} if found is None else {"found": found}
        self.shown.update(task, completed=completed, total=total, description=description, visible=visible, **fields)
        if not self.console.is_terminal and time.monotonic() - self.printed > SECONDS_BETWEEN_LINES:
            state = self.shown.tasks[task]
            self.say(f"{state.description}: {state_words(state)}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.printed = time.monotonic()
        self.shown.console.print(line, markup=False, highlight=False, soft_wrap=True)


def state_words(task: Task) -> str:
    """Return the known state of a task, e.g. "17 %, eta 0:22, 45 images/s, robust 41.2 %"."""
    unit, found = task.fields.get("unit", ""), task.fields.get("found", "")
    words = [] if task.total is None else [f"{task.percentage:.0f} %"]
    if task.finished:
        words += [f"in {duration(task.finished_time or 0)}"]
    elif task.total is not None:
        words += [f"eta {'-:--' if task.time_remaining is None else duration(task.time_remaining)}"]
    if unit and task.speed:
        words += [f"{task.speed:.3g} {unit}/s"]
    return ", ".join([*words, *[found] * bool(found)])


def raise_on_interrupt() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again if ``__main__`` has made it end the process at once."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def progress_bars(shown: bool = True) -> Iterator[Bars]:
    """Show progress bars on stderr until the context ends; none with ``--quiet``.

    Ctrl-C raises KeyboardInterrupt from here on, so that finished work is saved.
    """
    raise_on_interrupt()
    bars = Bars(Console(stderr=True, quiet=not shown or stdout.quiet))
    with bars.shown:
        yield bars
