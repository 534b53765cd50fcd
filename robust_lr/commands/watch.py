"""``robust-lr watch``: a run, seen from another terminal."""

from __future__ import annotations

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

from .terminal import console, say

if TYPE_CHECKING:
    from ..training.watch import Latest

#: lines of the table of epochs
SHOWN = 12


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Say how the run stands, and end.")
@click.option("--interval", type=click.FloatRange(min=0.05), help="Seconds between looks.  [default: 1; 30 in a file]")
def watch(run: Path, once: bool, interval: float | None) -> None:
    """Look at a training run from another terminal, until it is finished or stopped.

    RUN is its folder. Where the output is no terminal, a line is printed at each look.
    """
    from ..training.watch import Follower

    follower = Follower(run)
    seconds = interval or (1.0 if console.is_terminal else 30.0)
    if once or not console.is_terminal:
        while True:
            latest, state = follower.read(), follower.state()
            left = f", {time_left(latest)} left" if state == "running" and latest.step is not None else ""
            say(f"{run}: {state}: {latest.words()}{left}")
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


def time_left(latest: Latest) -> str:
    minutes, seconds = divmod(round(latest.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def picture(run: Path, state: str, latest: Latest) -> Group:
    """The state of a run: a line, a bar, and its last epochs."""
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
    waiting = f"waiting for images {100 * latest.waiting:.0f} % of the time, " if latest.waiting > 0.01 else ""
    return Group(
        head,
        Text(latest.words()),
        Text(f"{waiting}{time_left(latest)} left"),
        ProgressBar(total=step.steps, completed=step.step, width=60),
        rows,
    )
