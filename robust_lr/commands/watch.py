"""``robust-lr watch``: follow a training run from another terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .progress import raise_on_interrupt
from .terminal import console, duration, say

if TYPE_CHECKING:
    from ..training.watch import Follower, Latest

#: number of epochs in the table
SHOWN = 12


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print the state of the run once and exit.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 86_400),
    help="Seconds between updates.  [default: 1 on a terminal, else 30]",
)
def watch(run: Path, once: bool, interval: float | None) -> None:
    """Follow a training run from another terminal until it finishes or stops.

    RUN is the folder of the run. If the output is not a terminal, each update is a line.
    """
    from ..training.watch import Follower

    follower = Follower(run)
    seconds = interval or (1.0 if console.is_terminal else 30.0)
    raise_on_interrupt()
    try:
        follow(run, follower, seconds, once)
    except KeyboardInterrupt:
        say(f"{run} is no longer watched; its training is not affected.")
        sys.exit(130)


def follow(run: Path, follower: Follower, seconds: float, once: bool) -> None:
    """Show the state of the run until it is no longer running, or only ``once``."""
    if once or not console.is_terminal:
        while True:
            latest, state = follower.read(), follower.state()
            left = f", {duration(latest.seconds_left)} left" if state == "running" and latest.step is not None else ""
            say(f"{run}: {state}: {latest.describe()}{left}")
            if once or state != "running":
                return
            time.sleep(seconds)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            latest, state = follower.read(), follower.state()
            live.update(picture(run, state, latest), refresh=True)
            if state != "running":
                return
            time.sleep(seconds)


def picture(run: Path, state: str, latest: Latest) -> Group:
    """Return the state of a run for the terminal: a line, a progress bar, and a table of the last epochs."""
    step = latest.step
    head = Text(f"{run}: {state}", style="bold")
    if step is None:
        return Group(head, Text("no step yet"))
    rows = Table(box=box.SIMPLE_HEAD)
    for name in ("epoch", "lr", "loss", "batch %", "clean %", "held out %", "robust %"):
        rows.add_column(name, justify="right")
    for each in latest.epochs[-SHOWN:]:
        shares = (each.accuracy, each.test_accuracy, each.validation_accuracy, each.robust_accuracy)
        percent = ("" if share is None else f"{100 * share:.1f}" for share in shares)
        rows.add_row(f"{each.epoch:.0f}", f"{each.lr:g}", f"{each.loss:.3f}", *percent)
    waiting = (
        f"waiting for images {100 * latest.waiting_share:.0f} % of the time, " if latest.waiting_share > 0.01 else ""
    )
    return Group(
        head,
        Text(latest.describe()),
        Text(f"{waiting}{duration(latest.seconds_left)} left"),
        ProgressBar(total=step.steps, completed=step.step, width=60),
        rows,
    )
