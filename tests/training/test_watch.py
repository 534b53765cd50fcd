import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
from click.testing import CliRunner
from rich.console import Console

from robust_lr.cli import main
from robust_lr.commands import watch as command
from robust_lr.training.metrics import Metrics
from robust_lr.training.run_folder import CONFIG, METRICS, lock_folder
from robust_lr.training.watch import Follower, Latest
from robust_lr.utils.errors import InputError


def step(number, steps=8, **values):
    common = {"step": number, "steps": steps, "epoch": number / 4, "loss": 2.0 / number, "accuracy": 0.5, "lr": 0.1}
    return Metrics(**{**common, "seconds": 1.5, "waited": 0.5, "images": 64, **values})


def write(folder, steps, mode="a"):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).touch()
    with (folder / METRICS).open(mode) as file:
        for each in steps:
            file.write(json.dumps({k: v for k, v in asdict(each).items() if v is not None}) + "\n")


EPOCHS = [step(n) for n in (1, 2, 3)] + [step(4, test_accuracy=0.7, validation_accuracy=0.6, robust_accuracy=0.25)]


def test_a_run_is_summarized():
    latest = Latest()
    assert latest.describe() == "starting"
    for each in [*EPOCHS, step(5)]:
        latest = latest.add_step(each)
    assert latest.images_per_second == pytest.approx(32)
    assert latest.waiting_share == pytest.approx(0.25)
    assert latest.seconds_left == pytest.approx(3 * 2.0)
    assert latest.describe() == ("epoch 1.2, step 5, loss 0.400, lr 0.1, 32 images/s, clean 70.0 %, robust 25.0 %")
    assert latest.epoch_words() == (
        "epoch 1 of 2: loss 0.500, test accuracy (clean) 70.0 %, held out: robust accuracy 25.0 %, lr 0.1"
    )
    slow = latest
    for number in range(6, 206):
        slow = slow.add_step(step(number, 300, seconds=4.0, waited=0.0))
    assert slow.images_per_second == pytest.approx(16)  # the last steps count


def test_a_follower_reads_new_lines_and_starts_over_after_a_resume(tmp_path):
    run = tmp_path / "run"
    write(run, EPOCHS[:2])
    follower = Follower(run)
    assert follower.read().step.step == 2
    with (run / METRICS).open("a") as file:
        file.write('{"step": 3, "st')  # half a line
    assert follower.read().step.step == 2
    write(run, EPOCHS, mode="w")
    assert follower.read() == Follower(run).read()
    assert follower.read().last_accuracies() == {"clean": 0.7, "robust": 0.25}
    (run / "new").write_text("".join((run / METRICS).read_text().splitlines(keepends=True)[:1]))
    os.replace(run / "new", run / METRICS)  # as a resumed run takes steps back
    assert follower.read().step.step == 1


def test_a_run_is_running_stopped_or_finished(tmp_path):
    write(tmp_path / "run", EPOCHS)
    follower = Follower(tmp_path / "run")
    follower.read()
    assert follower.state() == "stopped"
    with lock_folder(tmp_path / "run"):
        assert follower.state() == "running"
    write(tmp_path / "run", [step(8)])
    follower.read()
    assert follower.state() == "finished"


def test_a_run_without_steps_is_shown(tmp_path):
    (tmp_path / CONFIG).touch()
    assert Follower(tmp_path).read() == Latest()
    shown = CliRunner().invoke(main, ["watch", str(tmp_path), "--once"])
    assert shown.output == f"{tmp_path}: stopped: starting\n"


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no run: give a folder that was the `out`"):
        Follower(tmp_path)
    result = CliRunner().invoke(main, ["watch", str(tmp_path / "nowhere")])
    assert result.exit_code == 2


def test_the_picture_shows_the_last_epochs(tmp_path):
    latest = Latest()
    for number in range(1, 17):
        latest = latest.add_step(step(4 * number, 64, epoch=float(number), test_accuracy=number / 100))
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(command.picture(tmp_path, "running", latest))
    text = console.export_text()
    console.file.close()
    assert "waiting for images 25 %" in text
    shown = re.findall(r"^ +(\d+) +0.1 ", text, re.M)
    assert shown == [str(number) for number in range(5, 17)]
    assert re.search(r"(?<![\d:])0:00 left", text)


def test_watching_from_another_process_follows_a_run_to_its_end(tmp_path):
    run = tmp_path / "run"
    write(run, EPOCHS[:1])
    with lock_folder(run):
        process = subprocess.Popen(
            [sys.executable, "-m", "robust_lr", "watch", str(run), "--interval", "0.05"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = process.stdout.readline()
        write(run, EPOCHS[1:])
        while "step 4" not in (line := process.stdout.readline()):
            assert line.startswith(f"{run}: running: ")
        write(run, [step(8)])
        rest, _ = process.communicate(timeout=180)
    assert first.startswith(f"{run}: running: epoch 0.2, step 1, loss 2.000, lr 0.1, 32 images/s, 0:14 left")
    assert rest.splitlines()[-1].startswith(f"{run}: finished: epoch 2.0, step 8")
    assert process.returncode == 0
