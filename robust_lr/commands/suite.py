"""``robust-lr suite``: evaluate every model, data set, attack and seed of a suite, and report the results."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ..utils.errors import InputError
from .progress import Bars, progress_bars
from .terminal import console, count_of, duration, say

if TYPE_CHECKING:
    from ..paper.jobs import Event
    from ..suites.estimate import Line
    from ..suites.job import SuiteJob
    from ..suites.spec import Suite

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("name", metavar="SUITE")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_PATH,
    help="Evaluate this checkpoint instead of the suite's models; may be repeated.",
)
@click.option("--data", "data_name", metavar="NAME", help="Data set, instead of the suite's.")
@click.option("--root", type=_PATH, help="Folder of a data set that does not ship.")
@click.option("--limit", type=int, metavar="N", help="Number of test images of each data set; 0 for all.")
@click.option("--seeds", "seeds_text", metavar="N,N,...", help="Seeds, instead of the suite's, e.g. 0,1,2.")
@click.option("--eps", metavar="EPS", help="Radius of the ball in every protocol, e.g. 4/255.")
@click.option("--out", type=_PATH, help="Folder of the suite.  [default: runs/NAME]")
@click.option(
    "--jobs", type=int, default=1, show_default=True, metavar="N", help="Number of models to evaluate in parallel."
)
@click.option(
    "--shard",
    "shard_text",
    metavar="I/N",
    help="Evaluate only the I-th of N parts of the images; the last part to finish merges them. Under torchrun, each "
    "process takes one part.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--batch-size", type=int, default=64, show_default=True, metavar="N", help="Images loaded at a time.")
@click.option("--workers", type=int, default=0, show_default=True, metavar="N", help="Processes that load images.")
@click.option("--fresh", is_flag=True, help="Repeat the evaluations that the folder already holds.")
@click.option("--dry-run", is_flag=True, help="List what would run and estimate the time; run and write nothing.")
def suite(
    name: str,
    checkpoints: tuple[Path, ...],
    data_name: str | None,
    root: Path | None,
    limit: int | None,
    seeds_text: str | None,
    eps: str | None,
    out: Path | None,
    jobs: int,
    shard_text: str | None,
    device: str,
    batch_size: int,
    workers: int,
    fresh: bool,
    dry_run: bool,
) -> None:
    """Run a suite of evaluations and write a report.

    SUITE is a TOML file, or a suite that ships with the package: quick (minutes), standard (the evaluations of a
    paper's main table) or paper (the tables of Hu et al. 2019). Finished work in the folder is not repeated, so the
    same command resumes an interrupted suite.
    """
    from ..results.shards import parse_shard
    from ..suites.job import make_jobs
    from ..suites.spec import read
    from ..utils.checks import check_at_least
    from ..utils.devices import device_of_process, pick_device, torchrun_shard
    from ..utils.files import check_writable_folder
    from ..utils.machine import check_processes
    from .options import checkpoint_name

    check_at_least(1, jobs=jobs, batch_size=batch_size)
    check_processes(jobs=jobs, workers=workers)
    launched = torchrun_shard()
    if launched is not None and (shard_text is not None or jobs > 1):
        raise InputError("--shard and --jobs: torchrun already divides the images; leave them out")
    shard = launched or (None if shard_text is None else parse_shard(shard_text))
    named = {checkpoint_name(path): str(path) for path in checkpoints}
    if len(named) < len(checkpoints):
        raise InputError(
            "--checkpoint: two checkpoints have the same name; write a suite that gives them different names"
        )
    chosen = read(
        name,
        checkpoints=named,
        data=data_name,
        root=None if root is None else str(root),
        limit=limit,
        seeds=None if seeds_text is None else numbers(seeds_text),
        eps=eps,
    )
    folder = out or Path("runs") / chosen.name
    check_writable_folder(out=folder)
    device = device_of_process(device)
    pick_device(device)
    options = {"device": device, "shard": shard, "batch_size": batch_size, "workers": workers, "fresh": fresh}
    todo = make_jobs(chosen, folder, **options)
    for job in todo:
        job.check()
    changes = tuple(
        f"{key}={value}" for key, value in {"data.name": data_name, "data.root": root}.items() if value is not None
    )
    if launched is not None and chosen.tables:
        raise InputError("torchrun: tables already train several networks in parallel; run the suite without torchrun")
    if dry_run:
        describe(todo, chosen, folder, changes, limit, jobs)
        return
    if todo:
        run(todo, jobs, first=launched is None or launched[0] == 1)
    run_tables(chosen, folder, changes, limit, jobs)
    if launched is None or launched[0] == 1:
        if todo:
            judge_transfer(todo)
        finish(folder, chosen.name)


def numbers(text: str) -> tuple[int, ...]:
    """Parse a list of seeds: "0,1,2" becomes (0, 1, 2)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--seeds {text!r}: give whole numbers separated by commas, e.g. 0,1,2") from None


def describe(
    todo: Sequence[SuiteJob], chosen: Suite, folder: Path, changes: tuple[str, ...], limit: int | None, jobs: int
) -> None:
    """Print everything that would run, with an upper bound of its duration."""
    from ..paper.tables import make_jobs as jobs_of_table
    from ..paper.tables import read
    from ..suites.estimate import estimate, estimate_table

    lines = [line for job in todo for line in estimate(job)]
    for table_name in chosen.tables:
        trained = jobs_of_table(read(table_name, changes, limit or None), folder / Path(table_name).stem)
        lines += [line for job in trained for line in estimate_table(job)]
    table = Table(title=Text("what would run"), box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("model", "data", "attack"):
        table.add_column(heading, overflow="fold")
    for heading in ("seed", "done", "passes\nper image", "at most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*cells(line))
    console.print(table)
    left = sum(line.seconds for line in lines)
    side = f", divided among {jobs} jobs" * (jobs > 1)
    say(f"at most {duration(left)} of work{side}; often less, because decided images leave an attack early")
    say("nothing was run or written (--dry-run)")


def cells(line: Line) -> list[Text]:
    texts = (
        line.model,
        line.data,
        line.attack,
        str(line.seed),
        f"{line.done:,} / {line.images:,}",
        f"{line.forwards + line.backwards:,}",
        duration(line.seconds),
    )
    return [Text(text) for text in texts]


def run(todo: Sequence[SuiteJob], workers: int, *, first: bool) -> None:
    """Run the jobs, in this process or in separate ones, and print a line for every result."""
    from ..paper.jobs import run as run_in_processes

    with progress_bars(shown=first) as bars:
        tasks: dict[int, Any] = {}

        def tell(event: Event) -> None:
            show_event(bars, tasks, todo[event.job], event)

        if workers == 1:
            for number, job in enumerate(todo):
                job.run(number, tell)
            return
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that workers save their work
        for _, event in run_in_processes(todo, workers=workers):
            tell(event)


def show_event(bars: Bars, tasks: dict[int, Any], job: SuiteJob, event: Event) -> None:
    if event.kind == "result":
        data, seed, attack, words = event.detail
        bars.say(f"{job.model}, {attack} on {data}, seed {seed}: {words}")
        return
    if event.job not in tasks:
        tasks[event.job] = bars.add(job.name, total=1.0)
    doing = {"train": "training", "end": "done"}.get(event.kind, event.detail)
    bars.update(
        tasks[event.job],
        completed=event.done,
        total=event.total,
        description=f"{job.name}: {doing}",
        visible=event.kind != "end",
    )


def run_tables(chosen: Suite, folder: Path, changes: tuple[str, ...], limit: int | None, jobs: int) -> None:
    """Train and evaluate the paper's tables in a suite, as `robust-lr table` does."""
    from ..suites.spec import table_number
    from .tables import show

    for table in chosen.tables:
        show(
            table_number(table),
            table,
            changes,
            count_only=False,
            limit=limit or None,
            seeds=None,
            out=folder / Path(table).stem,
            json_file=folder / f"{Path(table).stem}.json",
            jobs=None if jobs == 1 else jobs,
            dry_run=False,
        )


def judge_transfer(todo: Sequence[SuiteJob]) -> None:
    """Write the transfer matrices of a suite that saves images."""
    from ..suites.transfer import write_matrices

    for file in write_matrices(todo):
        say(f"transfer between the models: {file}")


def finish(folder: Path, title: str) -> None:
    """Print the main table and write the report to ``folder``, if it holds any evaluation."""
    from ..reports.html import html
    from ..reports.record import build
    from ..reports.sections.headline import headline
    from ..results.stored import LEDGER
    from ..utils.files import write_atomic
    from .show import terminal_table

    if not any(folder.rglob(LEDGER)):
        return
    report = build([folder], title=f"Suite {title}")
    section = headline(report)
    for table in section.tables if section is not None else ():
        console.print(terminal_table(table))
    say(f"{count_of(len(report.evaluations), 'evaluation')} in {folder}")
    try:
        page = html(report)
    except InputError as error:  # jinja2 is not installed
        say(f"no report: {error}")
        return
    write_atomic(folder / "report.html", page.encode())
    say(f"written to {folder / 'report.html'}")
