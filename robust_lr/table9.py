"""Table 9 of the paper: each network trained regularly and adversarially, then attacked; jobs run side by side."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from . import protocols
from .checkpoint import load_model
from .config import Config, find, from_dict, read_toml, set_value
from .data import load as load_data
from .errors import InputError, RunError
from .evaluate import evaluate
from .results import Result
from .runs import CONFIG, Interrupted, pick_device, spread, train_run
from .text import check_name

REGIMES = ("regular", "adversarial")


@dataclass(frozen=True)
class TableRow:
    """A network of the table: its label, its two configs by regime, and the paper's ImageNet figures in percent."""

    label: str
    configs: Mapping[str, Config]
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """What to train and what to attack with; ``limit`` is the number of test images, 0 for all."""

    rows: Sequence[TableRow]
    protocols: Sequence[str]
    limit: int = 0


@dataclass(frozen=True)
class Job:
    """One network under one regime."""

    label: str
    regime: str
    config: Config
    protocols: Sequence[str]
    limit: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.label} {self.regime}"

    def work(self) -> float:
        """Passes over the training images, roughly: for the time left. A test set is taken for a quarter of them."""
        attacks = sum(protocols.get(name).steps + 1 for name in self.protocols)
        return self.config.train.epochs * (self.config.attack.steps + 2) + attacks / 4


@dataclass(frozen=True)
class Event:
    """News from a job: how far a phase is, a result by protocol, its end, or the error that ended it."""

    job: int
    kind: Literal["train", "attack", "result", "end", "error"]
    done: int = 0
    total: int = 1
    detail: Any = None


def read(name: str | Path = "table9", overrides: Sequence[str] = (), limit: int = 0) -> Table:
    """The table of a TOML file: [[rows]], and sections that all rows or one regime share.

    Raises:
        InputError: missing file, unknown key, wrong value.
    """
    table = read_toml(find(name))
    for override in overrides:
        set_value(table, override)
    rows = table.pop("rows", [])
    names = table.pop("protocols", [])
    shared: dict[str, Any] = {key: table.pop(key) for key in ("seed", "model", "data") if key in table}
    regimes = {name: table.pop(name, {}) for name in REGIMES}
    for key in table:
        check_name("key of a table", key, ["seed", "protocols", "model", "data", "rows", *REGIMES])
    if not rows or not names:
        raise InputError(f"{name}: a table needs [[rows]] and protocols")
    for protocol in names:
        protocols.get(protocol)
    return Table(
        rows=[
            TableRow(
                label=row["label"],
                configs={
                    regime: from_dict({**shared, **section, "model": {**shared.get("model", {}), **row["model"]}})
                    for regime, section in regimes.items()
                },
                paper=row.get("paper", {}),
            )
            for row in rows
        ],
        protocols=names,
        limit=limit,
    )


def jobs(table: Table, folder: Path) -> list[Job]:
    """Every network under every regime; the adversarial ones first, because they take longest."""
    return [
        Job(
            row.label, regime, row.configs[regime], table.protocols, table.limit, folder / f"{slug(row.label)}-{regime}"
        )
        for regime in reversed(REGIMES)
        for row in table.rows
    ]


def slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label.lower())


def run_job(number: int, job: Job, tell: Callable[[Event], None]) -> None:
    """Train, or take up where an earlier run stopped, then attack under every protocol."""
    for step in train_run(job.config, job.folder, resume=(job.folder / CONFIG).exists()):
        tell(Event(number, "train", step.step, step.steps, step))
    model = load_model(job.folder).to(pick_device(job.config.train.device))
    data = load_data(job.config.data.name, "test", job.config.data.root)
    data = spread(data, job.limit) if job.limit else data
    total = len(job.protocols) * len(data)
    for i, name in enumerate(job.protocols):
        result = evaluate(
            model,
            data,
            name,
            seed=job.config.seed,
            out=job.folder / "attacks" / name,
            resume=True,
            name=job.name,
            workers=job.config.data.workers,
            progress=lambda done, n, i=i: tell(Event(number, "attack", i * n + done, total)),  # type: ignore[misc]
        )
        tell(Event(number, "result", detail=(name, result)))


def run(table: Table, folder: Path, *, workers: int = 0) -> Iterator[tuple[Job, Event]]:
    """Run all jobs of ``table`` in ``folder``, ``workers`` at a time in processes of their own, and yield their news.

    Small networks gain little from a second thread, so on a CPU it is better to train two of them at once. Jobs that
    are done are taken from disk; interrupted ones go on where they were.

    Args:
        workers: 0 means one for each CPU thread that PyTorch would use, or one on a GPU; at most one per job.

    Raises:
        InputError, RunError: what a job raised; the others are told to stop and save.
    """
    todo = jobs(table, folder)
    cpu = all(pick_device(job.config.train.device).type == "cpu" for job in todo)
    threads = torch.get_num_threads()
    workers = min(workers or (threads if cpu else 1), len(todo))
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    waiting: Any = context.Queue()
    for number, job in enumerate(todo):
        waiting.put((number, job))
    for _ in range(workers):
        waiting.put(None)
    share = max(1, threads // workers)
    processes = [context.Process(target=_work, args=(waiting, events, share), daemon=False) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        finished = 0
        while finished < len(todo):
            event = _next(events, processes)
            if event.kind == "error":
                raise event.detail
            finished += event.kind == "end"
            yield todo[event.job], event
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()  # SIGTERM: a training run saves its state
        for process in processes:
            process.join()


def _next(events: Any, processes: Sequence[BaseProcess]) -> Event:
    while True:
        try:
            event: Event = events.get(timeout=1)
            return event
        except queue.Empty:
            for process in processes:
                if process.exitcode not in (None, 0):
                    raise RunError(
                        f"a worker process died with exit code {process.exitcode} (out of memory?); "
                        "what it had saved is kept, run the same command again to go on"
                    ) from None


def _work(waiting: Any, events: Any, threads: int) -> None:
    """A worker: take jobs until there are none left, and report."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()

    def tell(event: Event) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit("the process that waits for this one is gone")
        events.put(event)

    while (item := waiting.get()) is not None:
        number, job = item
        try:
            run_job(number, job, tell)
        except Interrupted:
            return
        except (InputError, RunError) as error:
            events.put(Event(number, "error", detail=type(error)(f"{job.name}: {error}")))
            return
        events.put(Event(number, "end"))


def to_dict(table: Table, results: Mapping[tuple[str, str, str], Result]) -> dict[str, Any]:
    """``table9.json``: ours in full and the paper's figures (percent), by row."""
    return {
        "schema": 1,
        "paper": "Hu et al. 2019, Table 9, ImageNet, top-1 accuracy in percent",
        "rows": [
            {
                "label": row.label,
                "paper": dict(row.paper),
                "ours": {
                    regime: {name: results[row.label, regime, name].to_dict() for name in table.protocols}
                    for regime in REGIMES
                },
            }
            for row in table.rows
        ],
    }
