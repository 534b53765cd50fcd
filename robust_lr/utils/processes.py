"""Data parallelism on a CPU: forked processes of one thread each take items from one queue and send their results.

Small networks gain little from a second thread inside an operation, and almost twice the speed from a second process.
A fork shares the memory of the parent: nothing is copied or pickled on the way in, so any model works, and a process
starts in milliseconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import selectors
import signal
import sys
import threading
import traceback
import warnings
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from .devices import STOPPING, under_torchrun
from .errors import InputError, RunError
from .heap import keep_freed_memory, return_freed_memory
from .machine import check_processes, max_processes

Item = TypeVar("Item")
Found = TypeVar("Found")

#: bytes of a number in the queue, and of a block that a pipe accepts in full or not at all
_NUMBER, _BLOCK = array("I").itemsize, 4096


def can_fork() -> bool:
    """Return True if work may be divided among forked processes here.

    A fork is unsafe beside a GPU, whose driver does not survive it, in a process that is one of several already, and
    outside the main thread, because other threads may hold locks.
    """
    return (
        sys.platform == "linux"
        and not multiprocessing.current_process().daemon
        and not under_torchrun()
        and threading.current_thread() is threading.main_thread()
        and not torch.cuda.is_available()
    )


def process_count(processes: int | None) -> int:
    """Return how many processes to use: ``processes``, by default one per PyTorch thread, and 0 where forks are unsafe.

    Raises:
        InputError: more than the machine can run.
    """
    check_processes(processes=processes or 0)
    return (processes or min(torch.get_num_threads(), max_processes())) if can_fork() else 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Run operations in one thread: libraries round differently for another number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parallel(
    work: Callable[[Iterator[Item]], Iterator[Found]], items: Sequence[Item], processes: int
) -> Generator[Found]:
    """Yield what ``work`` yields for ``items``, in any order, from at most ``processes`` processes of one thread each.

    Every process calls ``work`` once, with an iterator that takes the next item of a common queue. With one process or
    one item, this process does the work. The others end with this process, and with this iterator.

    Args:
        processes: with 0, this process does the work in as many threads as PyTorch uses.
        work: may use anything that exists when the iterator starts; its changes stay in its process.

    Raises:
        RunError: a process was killed.
        Exception: what ``work`` raised; the other processes are stopped.
    """
    if processes == 0:
        yield from work(iter(items))
        return
    processes = min(processes, len(items))
    if processes <= 1:
        with one_thread():
            yield from work(iter(items))
        return
    return_freed_memory()
    queue = _Queue(len(items))
    context = multiprocessing.get_context("fork")
    running: dict[Connection[Any, Any], BaseProcess] = {}
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_run, args=(work, items, queue, theirs, number))
            running[ours] = process
            with warnings.catch_warnings():  # Python warns about other threads; the one of progress bars does no harm
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
        while running:
            for connection in queue.fill_until_ready(list(running)):
                kind, value = _receive(connection, running[connection])
                if kind == "error":
                    raise value
                if kind == "found":
                    yield value
                else:
                    connection.close()
                    running.pop(connection).join()
    finally:
        queue.close()
        for process in running.values():
            if process.pid is not None:
                process.kill()
        for connection, process in running.items():
            connection.close()
            if process.pid is not None:
                process.join()


class _Queue:
    """The numbers 0 .. count - 1 in a pipe from which several processes read; no lock can outlive its owner."""

    def __init__(self, count: int):
        self.waiting = memoryview(array("I", range(count)).tobytes())
        self.source, self.sink = os.pipe()
        os.set_blocking(self.sink, False)
        self.fill()

    def fill(self) -> None:
        """Write as many numbers as the pipe takes; close it after the last."""
        with suppress(BlockingIOError):
            while self.waiting:
                self.waiting = self.waiting[os.write(self.sink, self.waiting[:_BLOCK]) :]
        if not self.waiting and self.sink >= 0:
            os.close(self.sink)
            self.sink = -1

    def fill_until_ready(self, connections: Sequence[Connection[Any, Any]]) -> list[Connection[Any, Any]]:
        """Wait for messages, and write to the pipe meanwhile; return the connections that have one."""
        while True:
            with selectors.DefaultSelector() as selector:
                for connection in connections:
                    selector.register(connection, selectors.EVENT_READ, connection)
                if self.sink >= 0:
                    selector.register(self.sink, selectors.EVENT_WRITE)
                ready = [key.data for key, _ in selector.select() if key.data is not None]
            self.fill()
            if ready:
                return ready

    def read(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield the items whose numbers this process takes from the queue, until there are none left."""
        while number := os.read(self.source, _NUMBER):
            yield items[array("I", number)[0]]

    def close(self) -> None:
        for end in (self.source, self.sink):
            if end >= 0:
                os.close(end)


def _run(
    work: Callable[[Iterator[Any]], Iterator[Any]],
    items: Sequence[Any],
    queue: _Queue,
    connection: Connection[Any, Any],
    number: int,
) -> None:
    """Work in a forked process: send ("found", value) for each value, then ("end", None) or ("error", exception)."""
    if queue.sink >= 0:
        os.close(queue.sink)  # while a writing end is open, readers wait for more
        queue.sink = -1
    _become_worker()
    torch.manual_seed(torch.initial_seed() + number)  # a random model must not draw the same numbers in every process
    try:
        for found in work(queue.read(items)):
            _send(connection, "found", found)
        _send(connection, "end", None)
    except BaseException as error:
        with suppress(OSError):
            _send(connection, "error", _make_picklable(error))


def _become_worker() -> None:
    """Set up a forked process: one thread, its own heap, and an end with the parent, which alone decides on signals."""
    for stop in STOPPING:
        signal.signal(stop, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    gc.freeze()  # the garbage collector can skip the parent's objects
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _send(connection: Connection[Any, Any], kind: str, value: Any) -> None:
    """Send a message with its tensors in it; the connection's own pickling would put them in shared memory."""
    connection.send_bytes(pickle.dumps((kind, value)))


def _receive(connection: Connection[Any, Any], process: BaseProcess) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = pickle.loads(connection.recv_bytes())
        return message
    except (EOFError, OSError):
        process.join()
    code = process.exitcode or 0
    cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = "; out of memory? take fewer `processes`" if code == -signal.SIGKILL else ""
    raise RunError(f"a worker process {cause}{hint}; what was finished is kept, run it again to go on")


def _make_picklable(error: BaseException) -> BaseException:
    """Return ``error`` with the worker's traceback as a note if it can be pickled, or else a RunError with its text."""
    if not isinstance(error, InputError | RunError):
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error
