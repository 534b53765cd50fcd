"""Progress of long work: bars with time left on a terminal, a line now and then elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: between lines, when the output is not a terminal
QUIET_SECONDS = 30.0


class Bars:
    """One bar for each task; ``say`` prints a line above them."""

    def __init__(self, console: Console):
        self.console = console
        self.shown = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
            # a training step takes long: estimate from the last minutes, not the last seconds
            speed_estimate_period=180,
        )
        self.printed = time.monotonic()

    def add(self, description: str, total: float | None = None) -> TaskID:
        return self.shown.add_task(description, total=total)

    def update(
        self,
        task: TaskID,
        completed: float,
        total: float | None = None,
        description: str | None = None,
        visible: bool = True,
    ) -> None:
        self.shown.update(task, completed=completed, total=total, description=description, visible=visible)
        if not self.console.is_terminal and time.monotonic() - self.printed > QUIET_SECONDS:
            state = self.shown.tasks[task]
            left = f", {state.time_remaining:.0f} s left" if state.time_remaining is not None else ""
            self.say(f"{state.description}: {state.percentage:.0f} %{left}")

    def say(self, line: str) -> None:
        self.printed = time.monotonic()
        self.shown.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bars(shown: bool = True) -> Iterator[Bars]:
    """Bars on stderr, which are gone when the work is done."""
    bars = Bars(Console(stderr=True, quiet=not shown))
    with bars.shown:
        yield bars
