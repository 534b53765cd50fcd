"""Failures while an evaluation runs: a clear error, and nothing lost of what was done."""

import dataclasses
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import read
from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.files import write_atomic

WEAK = PGD(eps=16 / 255, step_size=4 / 255, steps=3)

RUN = """
    import sys, time
    import torch
    import robust_lr as rlr

    class Slow(torch.nn.Linear):
        def forward(self, x):
            time.sleep(0.002)
            return super().forward(x.flatten(1))

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = rlr.data.load("fashion-mnist-mini", "test").take(400)
    protocol = rlr.protocols.PGD(eps=0.1, step_size=0.02, steps=5, targeted=True, restarts=2)
    print("ready", flush=True)
    rlr.evaluate(Slow(784, 10), data, protocol, compute_batch=16, out=sys.argv[1], resume=True)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(200)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def timeless(folder):
    return [dataclasses.replace(row, seconds=0) for row in read(folder / "ledger.sqlite")]


def test_a_ledger_is_the_same_after_ten_kills_and_resumes(tmp_path):
    """A forked child is killed again and again, each time a little after the ledger grew."""
    room = {"__name__": "run"}
    text = textwrap.dedent(RUN)
    setup, body = text[: text.index('print("ready"')], "rlr.evaluate" + text.split("rlr.evaluate")[1].splitlines()[0]
    exec(setup, room)
    call = compile(body.replace("sys.argv[1]", "out"), "run", "exec")
    kills, wait = 0, np.random.default_rng(0)
    while True:
        child = os.fork()
        if child == 0:
            try:
                exec(call, {**room, "out": tmp_path / "killed"})
            finally:
                os._exit(0)
        if kills < 10:
            time.sleep(float(wait.uniform(0.02, 0.12)))
            os.kill(child, signal.SIGKILL)
            kills += 1
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and (tmp_path / "killed" / "result.json").exists():
            break
    exec(call, {**room, "out": tmp_path / "whole"})
    assert kills == 10
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert len(timeless(tmp_path / "whole")) == 400


def test_batch_sizes_and_shards_give_the_same_rows(tmp_path, data, model):
    for size in (1, 7, 64):
        rlr.evaluate(model, data, WEAK, batch_size=size, out=tmp_path / str(size))
    for i in (1, 2, 3):
        rlr.evaluate(model, data, WEAK, shard=(i, 3), out=tmp_path / f"s{i}")
    rlr.merge([tmp_path / f"s{i}" for i in (1, 2, 3)], tmp_path / "joined")
    rlr.evaluate(model, data, WEAK, workers=2, out=tmp_path / "workers")
    rows = timeless(tmp_path / "64")
    assert len(rows) == 200
    for other in ("1", "7", "joined", "workers"):
        assert timeless(tmp_path / other) == rows


@pytest.fixture
def folder(tmp_path):
    """Pictures in two classes."""
    from PIL import Image

    numbers = np.random.default_rng(0)
    for i in range(200):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["corrupt", "gone"])
def test_an_image_that_cannot_be_read_is_named_and_the_rows_before_it_kept(tmp_path, folder, fault, workers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    data = rlr.data.load(f"folder:{folder}")
    file = folder / "b" / "199.png"  # the last one, which no guard looks at
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes(len(content) - 40)) if fault == "corrupt" else file.rename(tmp_path / "aside")
    if fault == "gone":
        with pytest.raises(FileNotFoundError, match=r"199\.png"):  # its size is part of what the ledger belongs to
            rlr.evaluate(model, data, WEAK, out=tmp_path / "out", workers=workers)
        return
    with pytest.raises(InputError, match=r"199\.png cannot be read as an image .*; replace or remove it"):
        rlr.evaluate(model, data, WEAK, batch_size=10, compute_batch=10, out=tmp_path / "out", workers=workers)
    assert 100 <= len(timeless(tmp_path / "out")) < 200
    file.write_bytes(content)
    rlr.evaluate(model, data, WEAK, compute_batch=10, out=tmp_path / "out", resume=True)
    rlr.evaluate(model, data, WEAK, compute_batch=10, out=tmp_path / "whole")
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


class Faulty(nn.Module):
    """NaN for one image."""

    def __init__(self, model, image):
        super().__init__()
        self.model, self.image, self.on = model, image, True

    def forward(self, x):
        logits = self.model(x)
        here = (x - self.image).abs().flatten(1).amax(1) < 1e-6
        return torch.where(here[:, None] & self.on, torch.nan, logits)


def test_a_nan_names_the_image_and_the_rows_before_it_are_kept(tmp_path, data, model):
    image, _, id_ = data[191]
    faulty = Faulty(model, image)
    with pytest.raises(RunError, match=f"logits for image {id_} are not finite"):
        rlr.evaluate(faulty, data, WEAK, out=tmp_path / "out")
    assert len(timeless(tmp_path / "out")) >= 64
    faulty.on = False
    rlr.evaluate(faulty, data, WEAK, out=tmp_path / "out", resume=True)
    rlr.evaluate(faulty, data, WEAK, out=tmp_path / "whole")
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


def limited(size, script, *arguments):
    """Run a script that can write no file larger than ``size`` bytes: to it the disk is full."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
        check=False,
    )


FULL = """
    import signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk: an error, no death
    import torch
    import robust_lr as rlr
    from robust_lr.cli import main
    sys.argv = ["robust-lr", "attack", "--untargeted", "--set", "steps=1", "--model", sys.argv[1] + ":make",
                "--data", "fashion-mnist-mini", "--out", sys.argv[2], "--threads", "1", "--device", "cpu"]
    main()
"""


def test_on_a_full_disk_the_file_is_named_and_written_rows_stay(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    result = limited(60_000, FULL, tmp_path / "nets.py", tmp_path / "out")
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"robust-lr: {tmp_path / 'out' / 'ledger.sqlite'}: ")
    assert "rows written before are safe" in last
    kept = timeless(tmp_path / "out")
    assert 0 < len(kept) < 1000
    model = rlr.load_source(f"{tmp_path / 'nets.py'}:make", num_classes=10, in_channels=1)
    protocol = dataclasses.replace(
        rlr.protocols.get("lrnet-untargeted"),
        steps=1,
        name="lrnet-untargeted,steps=1",
        source="lrnet-untargeted with changes",
    )
    whole = rlr.data.load("fashion-mnist-mini", "test")
    rlr.evaluate(model, whole, protocol, name="nets-make", out=tmp_path / "out", resume=True)
    rlr.evaluate(model, whole, protocol, name="nets-make", out=tmp_path / "whole")
    assert timeless(tmp_path / "out") == timeless(tmp_path / "whole")


def test_a_locked_ledger_is_named_and_written_rows_stay(tmp_path, data, model):
    rlr.evaluate(model, data.take(150), WEAK, out=tmp_path)
    before = timeless(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE images SET seconds = 0")
        began = time.monotonic()
        with pytest.raises(InputError, match=r"ledger\.sqlite cannot be used as a ledger: database is locked"):
            rlr.evaluate(model, data.take(150), WEAK, out=tmp_path, resume=True)
        assert time.monotonic() - began < 30
        other.rollback()
    assert timeless(tmp_path) == before


# whole or not at all


def test_files_are_written_whole_with_the_mode_that_is_asked_for(tmp_path):
    file = tmp_path / "new" / "file"
    before = os.umask(0o027)
    try:
        write_atomic(file, b"one")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    file.chmod(0o600)
    write_atomic(file, b"two")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == b"two"
    assert os.listdir(file.parent) == ["file"]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomic(file, b"new")
    assert raised.value.filename == str(file)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
