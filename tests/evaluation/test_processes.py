"""Evaluations in several processes: the rows of one, whatever happens to the processes meanwhile."""

import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.harness import divide_images, evaluate_prepared, resolve_protocol
from robust_lr.evaluation.session import default_compute_batch, prepare
from robust_lr.protocols.cascade import Cascade
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import read
from robust_lr.utils.errors import InputError, RunError

ALLOW = ("classes", "normalization")
QUICK = PGD(eps=8 / 255, step_size=2 / 255, steps=6)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(100)


class Stranger(nn.Module):
    """Somebody's model: it cannot be pickled, keeps what it saw last, and gets slower with ``seconds``."""

    def __init__(self, seconds=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        self.scale = lambda x: 3 * x
        self.lock = threading.Lock()
        self.seconds = seconds
        self.seen = None

    def __deepcopy__(self, memo):
        raise TypeError("a lock cannot be copied")

    def forward(self, x):
        time.sleep(self.seconds)
        self.seen = x
        return self.scale(self.layers(self.seen))


def untimed(rows):
    return [replace(row, seconds=0.0) for row in rows]


def rows_of(model, data, protocol, **options):
    protocol = resolve_protocol(protocol)
    ready = prepare(model, data, [protocol], allow=ALLOW, **options)
    return untimed(evaluate_prepared(ready, protocol)[1])


@pytest.mark.parametrize(
    ("images", "processes", "sizes"),
    [
        (1000, 2, {62, 63}),
        (70, 2, {64, 6}),
        (130, 2, {32, 33}),
        (1000, 1, {64, 40}),
        (1000, 0, {64, 40}),
        (64, 4, {64}),
    ],
)
def test_processes_get_as_many_images_each(images, processes, sizes):
    groups = divide_images(torch.arange(images), 64, processes)
    assert torch.equal(torch.cat(list(groups)), torch.arange(images))
    assert {len(group) for group in groups} == sizes
    assert len(groups) % max(processes, 1) == 0 or len(groups) < processes


WORST = replace(QUICK, name="worst", criterion="worst", eps=32 / 255, restarts=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "protocol"),
    [
        (rlr.load_model, replace(WORST, steps=2)),
        (Stranger, QUICK),
        (Stranger, WORST),
        (Stranger, replace(QUICK, targeted=True, target="least-likely")),
        (Stranger, Cascade(parts=(replace(WORST, restarts=1), rlr.protocols.Square(eps=32 / 255, queries=5)))),
    ],
)
def test_rows_are_the_same_to_the_bit_for_one_two_and_three_processes(data, make, protocol):
    model, data = make(), data.take(40)
    one, two, three = (rows_of(model, data, protocol, processes=n, compute_batch=16) for n in (1, 2, 3))
    assert one == two == three
    assert [row.id for row in one] == sorted(data.ids.tolist())


def test_rows_do_not_depend_on_the_threads_that_pytorch_uses(data):
    model = nn.Sequential(nn.Conv2d(1, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(36864, 10))
    one = rows_of(model, data.take(16), QUICK, compute_batch=8)
    torch.set_num_threads(2)
    try:
        assert rows_of(model, data.take(16), QUICK, compute_batch=8, processes=1) == one
        assert rows_of(model, data.take(16), QUICK, compute_batch=8) == one
    finally:
        torch.set_num_threads(1)


def test_images_are_read_in_the_processes_too(tmp_path, data):
    images = (255 * torch.stack([data[i][0] for i in range(40)])).round().to(torch.uint8)
    lazy = rlr.data.from_arrays(images.numpy(), data.labels[:40].numpy(), num_classes=10)
    for workers in (0, 2):
        assert rows_of(Stranger(), lazy, QUICK, processes=2, compute_batch=8, workers=workers) == rows_of(
            Stranger(), lazy, QUICK, processes=1, compute_batch=8
        )


def test_one_ledger_one_progress_and_the_time_of_the_wall(tmp_path, data):
    seen = []
    began = time.perf_counter()
    result = rlr.evaluate(
        Stranger(0.01),
        data,
        QUICK,
        out=tmp_path,
        processes=2,
        compute_batch=8,
        allow=ALLOW,
        progress=lambda *now: seen.append(now),
    )
    took = time.perf_counter() - began
    assert seen[0] == (0, 100)
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)
    assert 0 < result.seconds < 1.05 * took
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.sqlite", "result.json"]
    assert [row.id for row in read(tmp_path / "ledger.sqlite")] == sorted(data.ids.tolist())


def test_a_sweep_a_grid_and_a_check_take_processes(data):
    options = {"processes": 2, "compute_batch": 8, "allow": ALLOW}
    model, few = Stranger(), data.take(12)
    grid = rlr.benchmark({"a": model}, few, ["none", QUICK], **options)
    assert grid.results["a", QUICK.name].n == 12
    assert len(rlr.sanity(model, few, replace(QUICK, steps=1), **options)) > 3


def test_an_error_in_a_process_is_the_one_of_the_model(data):
    class Broken(Stranger):
        def forward(self, x):
            logits = super().forward(x)
            return logits / (logits if os.getpid() != parent else 1) * float("nan") if os.getpid() != parent else logits

    parent = os.getpid()
    with pytest.raises(RunError, match=r"^the model's logits for image \d+ are not finite$"):
        rows_of(Broken(), data, QUICK, processes=2, compute_batch=8)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_lack_of_memory_is_one_line_and_what_was_written_stays(tmp_path, data, processes):
    class Hungry(Stranger):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 40:
                torch.empty(2**58)
            return super().forward(x)

    options = {"out": tmp_path, "compute_batch": 8, "allow": ALLOW}
    with pytest.raises(RunError, match=r"^passes of 8 images do not fit: .*can't allocate memory.*fewer `processes`$"):
        rlr.evaluate(Hungry(), data, QUICK, processes=processes, **options)
    assert 0 < len(read(tmp_path / "ledger.sqlite")) < 100


@pytest.mark.parametrize(
    ("images", "side", "rows"),
    [(1000, 28, 64), (1000, 64, 64), (64, 28, 32), (33, 28, 32), (32, 28, 16), (1, 28, 16), (1000, 65, 32),
     (1000, 96, 16), (1000, 160, 8), (1000, 224, 4), (1000, 1024, 4), (1, 224, 4)],
)  # fmt: skip
def test_passes_are_smaller_for_few_and_for_large_images(images, side, rows):
    assert default_compute_batch(images, (3, side, side)) == rows


def test_an_impossible_number_is_refused_before_anything_is_written(tmp_path, data):
    with pytest.raises(InputError, match=r"^processes = 1000000: must be"):
        rlr.evaluate(Stranger(), data, QUICK, processes=10**6, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# whatever happens meanwhile


def evaluate_slowly(folder, data):
    return rlr.evaluate(
        Stranger(0.002), data, QUICK, out=folder, resume=True, processes=2, compute_batch=8, allow=ALLOW
    )


def ledger_rows(folder):
    return untimed(read(folder / "ledger.sqlite"))


@pytest.mark.slow
def test_killed_parents_lose_nothing_that_was_written(tmp_path, data):
    evaluate_slowly(tmp_path / "whole", data)
    context, moments = multiprocessing.get_context("fork"), random.Random(0)
    written = 0
    for _ in range(10):
        parent = context.Process(target=evaluate_slowly, args=(tmp_path / "killed", data))
        parent.start()
        time.sleep(moments.uniform(0.02, 0.3))
        parent.kill()
        parent.join()
        if (tmp_path / "killed" / "ledger.sqlite").exists():
            now = len(ledger_rows(tmp_path / "killed"))
            assert now >= written
            written = now
    evaluate_slowly(tmp_path / "killed", data)
    assert ledger_rows(tmp_path / "killed") == ledger_rows(tmp_path / "whole")


@pytest.mark.slow
def test_killed_workers_end_the_evaluation_with_one_line_and_it_goes_on(tmp_path, data):
    evaluate_slowly(tmp_path / "whole", data)
    moments, failures, completed = random.Random(0), [], 0

    def list_children():
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    others = list_children()  # such as the resource tracker of multiprocessing

    def kill_one_worker(delay):
        limit = time.monotonic() + 20
        while not (workers := list_children() - others) and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(delay)
        if workers := list_children() - others:
            os.kill(int(moments.choice(sorted(workers))), signal.SIGKILL)

    for _ in range(10):
        killer = threading.Thread(target=kill_one_worker, args=(moments.uniform(0.0, 0.1),))
        killer.start()
        try:
            evaluate_slowly(tmp_path / f"killed-{completed}", data)
            completed += 1
        except RunError as error:
            failures.append(str(error))
        killer.join()
        assert not multiprocessing.active_children()
    assert failures
    assert all("killed by SIGKILL" in line and "\n" not in line for line in failures)
    for number in range(completed + 1):
        evaluate_slowly(tmp_path / f"killed-{number}", data)
        assert ledger_rows(tmp_path / f"killed-{number}") == ledger_rows(tmp_path / "whole")


def test_ctrl_c_ends_all_processes_and_the_evaluation_goes_on(tmp_path, data):
    def press(done, total):
        if done >= 16:
            os.kill(os.getpid(), signal.SIGINT)

    options = {"out": tmp_path, "resume": True, "processes": 2, "compute_batch": 8, "allow": ALLOW}
    with pytest.raises(KeyboardInterrupt):
        rlr.evaluate(Stranger(), data, QUICK, **options, progress=press)
    assert not multiprocessing.active_children()
    assert 16 <= len(ledger_rows(tmp_path)) < 100
    rlr.evaluate(Stranger(), data, QUICK, **options)
    assert ledger_rows(tmp_path) == rows_of(Stranger(), data, QUICK, compute_batch=8)
