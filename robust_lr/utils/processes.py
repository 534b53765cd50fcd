"""Data parallelism on a CPU: forked, single-threaded processes take items from a common queue and return results.

A second thread inside an operation speeds small networks up little; a second process almost doubles the speed. A fork
shares the parent's memory, so models need not be copied or pickled, and a process starts in milliseconds.
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

#: size in bytes of a number in the queue, and of a block that is written to a pipe atomically
_NUMBER, _BLOCK = array("I").itemsize, 4096


def can_fork() -> bool:
    """Return True if this process may fork workers.

    A fork is unsafe where CUDA is available, because the driver does not survive it, and outside the main thread,
    because other threads may hold locks. Worker processes and those of torchrun do not fork again.
    """
    return (
        sys.platform == "linux"
        and not multiprocessing.current_process().daemon
        and not under_torchrun()
        and threading.current_thread() is threading.main_thread()
        and not torch.cuda.is_available()
    )


def process_count(processes: int | None) -> int:
    """Return the number of processes to use: 0 if this process cannot fork, else ``processes``.

    Args:
        processes: None or 0 for one per PyTorch thread.

    Raises:
        InputError: more processes than ``max_processes``.
    """
    check_processes(processes=processes or 0)
    return (processes or min(torch.get_num_threads(), max_processes())) if can_fork() else 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Run operations in one thread, because results are rounded differently with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parallel(
    work: Callable[[Iterator[Item]], Iterator[Found]], items: Sequence[Item], processes: int
) -> Generator[Found]:
    """Yield the results of ``work`` on ``items``, in any order, from up to ``processes`` single-threaded processes.

    Every process calls ``work`` once, with an iterator that takes items from a common queue. The processes end when
    this process does, or when this iterator is closed.

    Args:
        work: may use anything that exists when the iterator starts; changes that it makes stay in its process.
        items: with at most one item, the calling process does the work.
        processes: with 1, the calling process does the work in one thread; with 0, in all of PyTorch's threads.

    Raises:
        RunError: a process was killed.
        Exception: any exception of ``work``; the other processes are stopped.
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
            with warnings.catch_warnings():  # Python warns about forks with threads; that of a progress bar is harmless
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
    """Numbers 0 to count - 1 in a pipe from which several processes read, without a lock that a dead one could hold."""

    def __init__(self, count: int):
        self.waiting = memoryview(array("I", range(count)).tobytes())
        self.source, self.sink = os.pipe()
        os.set_blocking(self.sink, False)
        self.fill()

    def fill(self) -> None:
        """Write as many numbers as fit into the pipe; close it after the last."""
        with suppress(BlockingIOError):
            while self.waiting:
                self.waiting = self.waiting[os.write(self.sink, self.waiting[:_BLOCK]) :]
        if not self.waiting and self.sink >= 0:
            os.close(self.sink)
            self.sink = -1

    def fill_until_ready(self, connections: Sequence[Connection[Any, Any]]) -> list[Connection[Any, Any]]:
        """Return the connections that have a message; refill the pipe while waiting for one."""
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
        """Take numbers from the queue and yield their items, until the queue is empty."""
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
        os.close(queue.sink)  # readers would wait for more numbers as long as a writing end is open
        queue.sink = -1
    _become_worker()
    torch.manual_seed(torch.initial_seed() + number)  # a random model must draw different numbers in each process
    try:
        for found in work(queue.read(items)):
            _send(connection, "found", found)
        _send(connection, "end", None)
    except BaseException as error:
        with suppress(OSError):
            _send(connection, "error", _make_picklable(error))


def _become_worker() -> None:
    """Set up a forked process: one thread, no heap trimming, Ctrl-C left to the parent, and an exit with the parent."""
    for stop in STOPPING:
        signal.signal(stop, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    gc.freeze()  # exempt the parent's objects from garbage collection
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _send(connection: Connection[Any, Any], kind: str, value: Any) -> None:
    """Send a message that contains its tensors; ``connection.send`` would put them into shared memory."""
    connection.send_bytes(pickle.dumps((kind, value)))


def _receive(connection: Connection[Any, Any], process: BaseProcess) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = pickle.loads(connection.recv_bytes())
        return message
    except (EOFError, OSError):
        process.join()
    code = process.exitcode or 0
    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = "; if memory ran out, use fewer `processes`" if code == -signal.SIGKILL else ""
    raise RunError(f"a worker process {cause}{hint}; finished work is kept, run the same again to continue")


def _make_picklable(error: BaseException) -> BaseException:
    """Return ``error`` with the worker's traceback as a note; a RunError with its text if it cannot be pickled."""
    if not isinstance(error, InputError | RunError):
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error
