"""``robust-lr table N`` and ``robust-lr table9``: reproduce the paper's tables, with its results beside ours."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .progress import Bars, progress_bars
from .terminal import console, count_of, duration, json_option, say, set_option, write_record

if TYPE_CHECKING:
    from ..paper.clean_accuracy import Accuracy
    from ..paper.jobs import Job
    from ..results.result import Result

_PATH = click.Path(path_type=Path)

_OPTIONS = (
    set_option("model.width=0.5 or adversarial.train.epochs=8"),
    click.option("--seeds", type=int, help="Training runs of each network.  [default: as in the config]", metavar="N"),
    click.option("--limit", type=int, help="Number of test images.  [default: as in the config]", metavar="N"),
    click.option("--out", type=_PATH, help="Folder of the runs.  [default: runs/tableN]"),
    json_option(help="File for the results; `-` is stdout.  [default: tableN.json]"),
    click.option(
        "--jobs", type=int, help="Networks trained in parallel.  [default: one per core, one on a GPU]", metavar="N"
    ),
    click.option("--dry-run", is_flag=True, help="Check everything and list what would run; train and write nothing."),
)


def of_tables(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all tables share to ``command``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("number", type=click.IntRange(2, 9), metavar="2|3|4|5|6|7|8|9")
@click.option("--count-only", is_flag=True, help="Only count parameters and multiply-adds of the rows; train nothing.")
@click.option("--config", help="TOML file with the rows.  [default: the shipped one]")
@click.option("--data", "data_name", metavar="NAME", help="Data set.  [default: as in the config]")
@click.option("--root", help="Folder of a data set that does not ship.")
@of_tables
def table(
    number: int,
    count_only: bool,
    config: str | None,
    data_name: str | None,
    root: str | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Train the networks of a table of the paper, and print the paper's results beside ours.

    Finished work in the folder is not repeated, so the same command resumes an interrupted table. Table 2 has only
    sizes.
    """
    chosen = {"data.name": data_name, "data.root": root}
    changes = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    rows = (
        SCALES["imagenet"] if number == 9 and count_only else f"table{number}"
    )  # sizes are those of the paper's networks
    show(number, config or rows, (*changes, *overrides), count_only=count_only, **options)


#: configs of Table 9 by scale
SCALES = {"minutes": "table9", "hour": "table9/hour", "gpu": "table9/gpu", "imagenet": "table9/imagenet"}


@click.command()
@click.option(
    "--scale",
    type=click.Choice([*SCALES]),
    default="minutes",
    show_default=True,
    help="Minutes or an hour or two on two cores, half an hour on one GPU, or ImageNet on 32 GPUs.",
)
@click.option("--config", help="TOML file with the rows.  [default: the one of --scale]")
@of_tables
def table9(scale: str, config: str | None, overrides: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Reproduce the paper's Table 9: train and attack ResNet-26, ResNet-50 and LR-Net-26, and test its claims.

    Finished work in the folder is not repeated, so the same command resumes an interrupted table.
    """
    folder = out or Path("runs/table9" if scale == "minutes" else f"runs/table9-{scale}")
    show(9, config or SCALES[scale], overrides, count_only=False, out=folder, **options)


def show(
    number: int,
    config: str,
    overrides: tuple[str, ...],
    *,
    count_only: bool,
    seeds: int | None,
    limit: int | None,
    out: Path | None,
    json_file: Path | None,
    jobs: int | None,
    dry_run: bool,
) -> None:
    """Read, run and print a table, and write its JSON; a table of sizes writes it only if ``json_file`` is given."""
    from ..paper import tables as room
    from ..paper.claims import judge, read_outcomes
    from ..paper.report import architecture_table, claims_table, cost_table, render, stronger_attacks, verdict_table
    from ..utils.checks import check_at_least
    from ..utils.files import check_writable, check_writable_folder

    given = {"limit": limit, "jobs": jobs, "seeds": seeds}
    check_at_least(1, **{name: value for name, value in given.items() if value is not None})
    check_writable(json_file=json_file)
    rows = room.read(config, overrides, limit, seeds)
    if count_only or not rows.regimes:
        if not rows.regimes:
            console.print(architecture_table(rows, number))
        console.print(cost_table(rows, number))
        if json_file is not None:
            write_record(json_file, room.counts_to_dict(rows, number))
        return
    folder = out or Path(f"runs/table{number}")
    file = json_file or Path(f"table{number}.json")
    check_writable(json_file=file)
    check_writable_folder(out=folder)
    if dry_run:
        describe(room.make_jobs(rows, folder))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that workers save their work
    began = time.monotonic()
    todo = room.make_jobs(rows, folder)
    with progress_bars() as bars:
        results = run_all(todo, jobs or 0, bars)
    outcomes = read_outcomes(todo)
    verdicts = judge(rows.claims, outcomes)
    seconds = time.monotonic() - began
    record = room.to_dict(rows, number, results, outcomes, verdicts)
    console.print(render(rows, number, results, outcomes))
    if (judged := verdict_table(results)) is not None:
        console.print(judged)
    if rows.stronger:
        console.print(stronger_attacks(rows, outcomes))
    if verdicts:
        console.print(claims_table(verdicts))
    write_record(
        file, {**record, "seconds": seconds, "seconds_of_all_jobs": sum(job.measured_seconds() for job in todo)}
    )
    say(f"{duration(seconds)} in all; runs in {folder}")


def describe(todo: Sequence[Job]) -> None:
    """Check the jobs of a table and print them."""
    from ..paper import jobs
    from ..training.run_folder import CONFIG

    for job in todo:
        jobs.check(job)
        state = "started or finished" if (job.folder / CONFIG).exists() else "not started"
        say(f"{job.name}: {count_of(job.config.train.epochs, 'epoch')}, {state}, {job.folder}")
    say("nothing was trained or written (--dry-run)")


def run_all(todo: list[Job], workers: int, bars: Bars) -> dict[tuple[str, str, int, str], Result | Accuracy]:
    """Run jobs with progress bars; return their results by (label, regime, seed, attack)."""
    from ..paper import jobs
    from ..paper.report import one_line

    results = {}
    overall = bars.add("all", total=sum(job.estimated_work() for job in todo))
    tasks: dict[int, Any] = {}
    shares: dict[int, float] = {}
    for job, event in jobs.run(todo, workers=workers):
        if event.kind == "result":
            name, result = event.detail
            results[job.label, job.regime, job.config.seed, name] = result
            bars.say(f"{job.name}, {name}: {one_line(result)}")
            continue
        if event.job not in tasks:
            tasks[event.job] = bars.add(job.name, total=1.0)
        part = event.done / event.total
        share = {"train": 0.9 * part, "attack": 0.9 + 0.1 * part, "end": 1.0}[event.kind]
        shares[event.job] = share * job.estimated_work()
        doing = {"train": "training", "attack": "attacking", "end": "done"}[event.kind]
        bars.update(tasks[event.job], completed=share, description=f"{job.name}: {doing}", visible=event.kind != "end")
        bars.update(overall, completed=sum(shares.values()))
    return results
