"""Table 9 of the paper: each network trained regularly and adversarially, then attacked; jobs run side by side."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from . import protocols
from .checkpoint import load_model
from .config import Config, at_least, find, from_dict, read_toml, set_value
from .data import load as load_data
from .errors import InputError, RunError
from .evaluate import evaluate
from .models import build_model
from .results import Result
from .runs import CONFIG, pick_device, prepare, spread, train_run
from .text import check_name, typed

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
    for key in table:
        check_name("key of a table", key, ["seed", "protocols", "model", "data", "rows", *REGIMES])
    names, rows = table.pop("protocols", []), table.pop("rows", [])
    if not rows or not names:
        raise InputError(f"{name}: a table needs [[rows]] and protocols")
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise InputError(f"protocols = {names!r}: a list of names is needed, none of them twice")
    for protocol in names:
        protocols.get(protocol)
    regimes = {regime: mapping(table.pop(regime, {}), regime) for regime in REGIMES}
    for section in ("model", "data"):
        mapping(table.get(section, {}), section)
    columns = [prefix + column for prefix in ("", "regular-") for column in ("clean", *names)]
    labels = [row_label(row) for row in (rows if isinstance(rows, list) else [rows])]
    for label in labels:
        if [slug(other) for other in labels].count(slug(label)) > 1:
            raise InputError(f"[[rows]] label = {label!r}: another row's label gives the same folder {slug(label)!r}")
    at_least(0, limit=limit)
    return Table([table_row(row, table, regimes, columns) for row in rows], names, limit)


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} = {value!r}: a [{name}] table is needed")
    return value


def row_label(row: Any) -> str:
    label: str = typed(str, mapping(row, "rows").get("label", 0), "[[rows]] label")
    return label


def table_row(
    row: Mapping[str, Any], shared: Mapping[str, Any], regimes: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> TableRow:
    """A row, whose model values come before those of a regime, and these before the shared ones."""
    for key in row:
        check_name("key of [[rows]]", key, ["label", "model", "paper"])
    model = mapping(row.get("model", {}), "model")
    paper = mapping(row.get("paper", {}), "paper")
    for column in paper:
        check_name("column of the paper's figures", column, columns)
    return TableRow(
        label=row["label"],
        configs={regime: from_dict(merged(merged(shared, own), {"model": model})) for regime, own in regimes.items()},
        paper={column: typed(float, figure, f"paper.{column}") for column, figure in paper.items()},
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; where both hold a table, the two are merged."""
    both = {key: merged(base[key], v) for key, v in changes.items() if isinstance(v, Mapping) and key in base}
    return {**base, **changes, **both}


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


def check(job: Job) -> None:
    """InputError if the job cannot run: better now than when the others have trained."""
    _, test_data, spec = prepare(job.config)
    if job.limit:
        spread(test_data, job.limit)
    with torch.device("meta"):
        build_model(**spec)


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
    at_least(0, jobs=workers)
    todo = jobs(table, folder)
    for job in todo:
        check(job)
    cpu = all(pick_device(job.config.train.device).type == "cpu" for job in todo)
    threads = torch.get_num_threads()
    workers = min(workers or (threads if cpu else 1), len(todo))
    context = multiprocessing.get_context("spawn")
    share = max(1, threads // workers)
    waiting = list(enumerate(todo))
    busy: dict[Connection[Any, Any], BaseProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(theirs, share))
            process.start()
            theirs.close()
            busy[ours] = process
            ours.send(waiting.pop(0))
        while busy:
            wait(list(busy))
            for connection in [each for each in busy if each.poll()]:
                event = _receive(connection, busy[connection])
                if event.kind == "error":
                    raise event.detail
                yield todo[event.job], event
                if event.kind == "end" and waiting:
                    with suppress(OSError):  # it died: the next turn says so
                        connection.send(waiting.pop(0))
                elif event.kind == "end":
                    connection.close()  # the worker ends
                    busy.pop(connection).join()
    finally:
        for process in busy.values():
            process.terminate()  # SIGTERM: a training run saves its state
        for connection, process in busy.items():
            connection.close()  # or a worker could wait for ever to be heard
            process.join()


def _receive(connection: Connection[Any, Any], process: BaseProcess) -> Event:
    try:
        event: Event = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise RunError(
            f"a worker process died with exit code {process.exitcode} (out of memory?); "
            "what it had saved is kept, run the same command again to go on"
        ) from None
    return event


def _work(connection: Connection[Any, Any], threads: int) -> None:
    """A worker: take jobs until there are none left, and report."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()

    def tell(event: Event) -> None:
        try:
            connection.send(event)
        except OSError:
            if parent is not None and not parent.is_alive():
                signal.raise_signal(signal.SIGTERM)  # nobody waits for this process: save and stop

    while True:
        try:
            number, job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            run_job(number, job, tell)
        except (InputError, RunError) as error:
            kind = InputError if isinstance(error, InputError) else RunError
            tell(Event(number, "error", detail=kind(f"{job.name}: {error}")))
            return
        tell(Event(number, "end"))


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
