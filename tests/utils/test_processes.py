"""Work divided among forked processes: results, errors, and processes that end with those that need them."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.machine import max_processes
from robust_lr.utils.processes import parallel, process_count


def squares(numbers):
    for number in numbers:
        yield number**2, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("items", [[], [3], list(range(40))])
def test_every_item_is_processed_once_in_one_thread(processes, items):
    found = list(parallel(squares, items, processes))
    assert sorted(square for square, _, _ in found) == [item**2 for item in items]
    assert {threads for _, _, threads in found} <= {1}
    pids = {pid for _, pid, _ in found}
    assert len(pids) <= processes
    assert (os.getpid() in pids) == (bool(items) and min(processes, len(items)) == 1)
    assert not multiprocessing.active_children()


def test_no_process_is_started_if_forks_are_unsafe_and_threads_stay():
    torch.set_num_threads(2)
    try:
        assert list(parallel(squares, [1, 2], 0)) == [(1, os.getpid(), 2), (4, os.getpid(), 2)]
    finally:
        torch.set_num_threads(1)


def test_the_number_of_threads_is_restored():
    torch.set_num_threads(2)
    try:
        assert [threads for _, _, threads in parallel(squares, [1], 3)] == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_queue_takes_more_items_than_a_pipe_holds():
    def total(numbers):
        yield sum(numbers)

    assert sum(parallel(total, range(100_000), 2)) == sum(range(100_000))


def test_work_may_use_what_cannot_be_pickled_and_sends_tensors():
    hidden = threading.Lock()
    shared = torch.arange(10.0)

    def work(numbers):
        for number in numbers:
            with hidden:
                yield {"value": shared[number : number + 1], "number": number}

    found = list(parallel(work, range(10), 2))
    assert {row["number"]: row["value"].item() for row in found} == {i: float(i) for i in range(10)}


def test_random_numbers_differ_between_processes():
    def draw(numbers):
        for _ in numbers:
            yield float(torch.rand(()))
            time.sleep(0.05)

    before = torch.random.get_rng_state()
    found = list(parallel(draw, range(8), 2))
    assert len(set(found)) == 8
    assert torch.equal(torch.random.get_rng_state(), before)


class Picky(Exception):
    """Cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("image 7 is gray"), InputError, "^image 7 is gray$"),
        (RunError("not finite"), RunError, "^not finite$"),
        (ZeroDivisionError("by nothing"), ZeroDivisionError, "^by nothing"),
        (Picky("a", "b"), (RunError, Picky), "a b$"),
    ],
)
def test_an_error_of_one_process_is_raised_and_ends_the_others(processes, error, kind, message):
    def work(numbers):
        for number in numbers:
            if number == 3:
                raise error
            yield number

    with pytest.raises(kind, match=message) as caught:
        list(parallel(work, range(8), processes))
    if processes == 2 and isinstance(error, ZeroDivisionError):
        assert "in work" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_killed_process_is_one_line():
    def work(numbers):
        for number in numbers:
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    with pytest.raises(
        RunError, match=r"^a worker process was killed by SIGKILL; if memory ran out, .* run the same again"
    ):
        list(parallel(work, range(8), 2))
    assert not multiprocessing.active_children()


def test_processes_end_with_the_iterator():
    def work(numbers):
        for number in numbers:
            yield number
            time.sleep(60)

    found = parallel(work, range(8), 2)
    next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()
    assert not multiprocessing.active_children()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_processes_end_with_their_parent():
    script = textwrap.dedent(
        """
        import os, time
        from robust_lr.utils.processes import parallel

        def work(numbers):
            for number in numbers:
                yield os.getpid()
                time.sleep(60)

        for pid in parallel(work, range(6), 3):
            print(pid, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        assert all(map(alive, pids))
        parent.kill()
    limit = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_the_default_is_a_process_for_each_thread(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    torch.set_num_threads(2)
    try:
        assert process_count(None) == 2
    finally:
        torch.set_num_threads(1)
    assert (process_count(None), process_count(0), process_count(3)) == (1, 1, 3)


@pytest.mark.parametrize("processes", [-1, max_processes() + 1, 10**9])
def test_too_many_processes_are_refused(processes):
    with pytest.raises(InputError, match=f"^processes = {processes}: must be at least 0 and at most"):
        process_count(processes)


def test_there_is_one_process_under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert process_count(3) == 0


def test_there_is_one_process_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(process_count(3)))
    thread.start()
    thread.join()
    assert found == [0]


def test_there_is_one_process_in_a_daemon():
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(process_count(3)), daemon=True)
    process.start()
    assert receiver.recv() == 0
    process.join()


def test_errors_of_this_package_survive_pickling():
    for error in (InputError("a"), RunError("b")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
