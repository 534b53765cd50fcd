"""Train and evaluate many networks in parallel: jobs in separate processes, which can be interrupted and resumed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar
from typing import Protocol as Interface

import torch

from ..config.training import Config
from ..data.dataset import spread
from ..data.registry import load as load_data
from ..evaluation.harness import evaluate
from ..models.build import build_model
from ..models.checkpoint import load_model
from ..protocols.base import Protocol
from ..results.stored import read_evaluation
from ..training.run import prepare, train_run
from ..training.run_folder import CONFIG, read_metrics
from ..utils.devices import pick_device
from ..utils.errors import InputError, RunError
from ..utils.machine import check_processes
from .clean_accuracy import CLEAN, measure


@dataclass(frozen=True)
class Attack:
    """An attack of a table.

    Attributes:
        name: name of the column and of the folder.
        protocol: the attack.
        limit: number of test images; 0 for all.
        runs: number of training runs of each network to attack; 0 for all.
        check: how thoroughly the result is probed, as in ``evaluate``.
    """

    name: str
    protocol: Protocol
    limit: int = 0
    runs: int = 0
    check: str | None = None


@dataclass(frozen=True)
class Job:
    """Train one network, then attack it; without attacks, measure its accuracy on clean images.

    Attributes:
        label: label of the table row.
        regime: "adversarial" or "regular" training.
        limit: number of clean test images; 0 for all.
        folder: folder of the training run; evaluations are in its folder ``attacks``.
    """

    label: str
    regime: str
    config: Config
    attacks: Sequence[Attack]
    limit: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.label} {self.regime}, seed {self.config.seed}"

    def evaluation_folder(self, attack: Attack) -> Path:
        """Return the folder of the evaluation with ``attack``."""
        return self.folder / "attacks" / attack.name

    def measured_seconds(self) -> float:
        """Return the seconds that a finished job spent in training steps and evaluations, over all its invocations."""
        training = sum(float(step["seconds"] + step["waited"]) for step in read_metrics(self.folder))
        folders = [self.evaluation_folder(attack) for attack in self.attacks]
        return training + sum(float(read_evaluation(folder).record["seconds"]) for folder in folders)

    def estimated_work(self) -> float:
        """Return the estimated number of passes over the training images; a test set counts as a quarter of them."""
        attacks = sum(attack.protocol.steps + 1 for attack in self.attacks)
        return self.config.train.epochs * (self.config.attack.steps + 2) + attacks / 4

    def check(self) -> None:
        check(self)

    def is_on_cpu(self) -> bool:
        return pick_device(self.config.train.device).type == "cpu"

    def run(self, number: int, tell: Callable[[Event], None]) -> None:
        run_job(number, self, tell)


class Task(Interface):
    """Work for one process among several."""

    @property
    def name(self) -> str:
        """Name for messages."""

    def check(self) -> None:
        """Raise an InputError if the input is wrong, as far as that can be known before the work begins."""

    def is_on_cpu(self) -> bool:
        """Return True if the work needs no GPU."""

    def run(self, number: int, tell: Callable[[Event], None]) -> None:
        """Do the work, and report its progress to ``tell`` as job ``number``."""


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Event:
    """Report from a job: progress of training or an attack, a result, the job's end, or the error that ended it.

    Attributes:
        job: index of the job.
        done, total: steps or images, for "train" and "attack".
        detail: the metrics of the step for "train", (name, result) for "result", the exception for "error".
    """

    job: int
    kind: Literal["train", "attack", "result", "end", "error"]
    done: int = 0
    total: int = 1
    detail: Any = None


def check(job: Job) -> None:
    """Raise an InputError if the job's config, data or limits are wrong, before any network is trained."""
    ready = prepare(job.config)
    for limit in {job.limit, *(attack.limit for attack in job.attacks)} - {0}:
        spread(ready.test, limit)
    with torch.device("meta"):
        build_model(**ready.spec)


def run_job(number: int, job: Job, tell: Callable[[Event], None]) -> None:
    """Train or resume training, then run every attack; without attacks, measure clean accuracy."""
    for step in train_run(job.config, job.folder, resume=(job.folder / CONFIG).exists()):
        tell(Event(number, "train", step.step, step.steps, step))
    model = load_model(job.folder).to(pick_device(job.config.train.device))
    data = load_data(job.config.data.name, "test", job.config.data.root)
    workers = job.config.data.workers
    if not job.attacks:
        some = spread(data, job.limit) if job.limit else data
        tell(Event(number, "result", detail=(CLEAN, measure(model, some, job.folder, workers=workers))))
    for i, attack in enumerate(job.attacks):
        result = evaluate(
            model,
            spread(data, attack.limit) if attack.limit else data,
            attack.protocol,
            seed=job.config.seed,
            out=job.evaluation_folder(attack),
            resume=True,
            name=f"{job.label} {job.regime}",
            check=attack.check,
            workers=workers,
            progress=lambda done, n, i=i: tell(  # type: ignore[misc]
                Event(number, "attack", i * n + done, len(job.attacks) * n)
            ),
        )
        tell(Event(number, "result", detail=(attack.name, result)))


def run(todo: Sequence[AnyTask], *, workers: int = 0) -> Iterator[tuple[AnyTask, Event]]:
    """Run all jobs, ``workers`` at a time in separate processes, and yield their events.

    A second thread speeds small networks up little, so on a CPU it is better to train two networks at once. Finished
    jobs are read from disk, and interrupted ones are resumed.

    Args:
        workers: number of processes; 0 for one per CPU thread that PyTorch would use, or for one on a GPU.

    Raises:
        InputError, RunError: the error of a job; the other jobs save their state and stop.
    """
    check_processes(jobs=workers)
    for job in todo:
        job.check()
    cpu = all(job.is_on_cpu() for job in todo)
    threads = torch.get_num_threads()
    workers = min(workers or (threads if cpu else 1), len(todo))
    context = multiprocessing.get_context("spawn")
    share = max(1, threads // workers)
    waiting = list(enumerate(todo))
    busy: dict[Connection[Any, Any], BaseProcess] = {}
    try:
        for _ in range(workers):
            connection, workers_end = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(workers_end, share))
            process.start()
            workers_end.close()
            busy[connection] = process
            connection.send(waiting.pop(0))
        while busy:
            wait(list(busy))
            for connection in [each for each in busy if each.poll()]:
                event = _receive(connection, busy[connection])
                if event.kind == "error":
                    raise event.detail
                yield todo[event.job], event
                if event.kind == "end" and waiting:
                    with suppress(OSError):  # the worker died: the next `_receive` reports it
                        connection.send(waiting.pop(0))
                elif event.kind == "end":
                    connection.close()  # ends the worker
                    busy.pop(connection).join()
    finally:
        for process in busy.values():
            process.terminate()  # on SIGTERM, a training run saves its state
        for connection, process in busy.items():
            connection.close()  # a worker blocked in sending an event gets an error and ends
            process.join()


def _receive(connection: Connection[Any, Any], process: BaseProcess) -> Event:
    try:
        event: Event = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise RunError(
            f"a worker process died with exit code {process.exitcode}, perhaps out of memory; saved states are kept, "
            "run the same command again to continue"
        ) from None
    return event


def _work(connection: Connection[Any, Any], threads: int) -> None:
    """Run the jobs that arrive in a worker process, and send their events, until the connection is closed."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    parent = multiprocessing.parent_process()

    def tell(event: Event) -> None:
        try:
            connection.send(event)
        except OSError:
            if parent is not None and not parent.is_alive():
                signal.raise_signal(signal.SIGTERM)  # the parent died: save the state and stop

    while True:
        try:
            number, job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            job.run(number, tell)
        except (InputError, RunError) as error:
            kind = InputError if isinstance(error, InputError) else RunError
            tell(Event(number, "error", detail=kind(f"{job.name}: {error}")))
            return
        tell(Event(number, "end"))
