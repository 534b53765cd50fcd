"""Output on a terminal: tables that never cut a number, progress in words, output for people or for programs."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.table import Table

from robust_lr.cli import main
from robust_lr.commands import progress, terminal
from robust_lr.commands.plan import format_hours
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import save_weights

NUMBERS = ["8.6e-14", "1.7e-13", "+12.3 to +45.6", "98.5-100.0", "1000 / 1000"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small data set and a small network."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8)
    np.savez("small.npz", images=images, labels=np.arange(8) % 2)
    torch.manual_seed(0)
    spec = {"name": "resnet18", "num_classes": 2, "in_channels": 1, "width": 1 / 16, "stem": "small"}
    save_weights(tmp_path / "tiny.safetensors", build_model(**spec), spec, {"data": "npz:small.npz"})
    return tmp_path


ATTACK = ["attack", "--untargeted", "--checkpoint", "tiny.safetensors", "--data", "npz:small.npz", "--steps", "2"]
HUGE = "99999999999999999999"
MODEL = ["--model", "a.py:b", "--data", "npz:small.npz"]
TRAIN = ["model.name=resnet18", "model.width=0.0625", "model.stem=small", "data.name=npz:small.npz", "attack.steps=1"]
TRAIN = [*TRAIN, "train.epochs=1", "train.batch_size=4", "train.warmup_epochs=0", "train.milestones=[]"]
TRAIN = ["adv-train", *(word for value in TRAIN for word in ("--set", value))]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def wide_table():
    table = Table(title="models")
    table.add_column("model", overflow="fold")
    for number in NUMBERS:
        table.add_column(f"heading\nof {number[:3]}", justify="right")
    table.add_row("a-network-of-a-very-long-name-that-folds", *NUMBERS)
    table.add_row("another", *NUMBERS)
    return table


# Tables


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_a_terminal_of_any_width_shows_every_number(width, capsys):
    console = terminal.Console(width=width, force_terminal=True, no_color=True, legacy_windows=False)
    console.print(wide_table())
    text = capsys.readouterr().out
    for number in NUMBERS:
        assert text.count(number) == 2
    assert "\u2026" not in text
    assert "".join(text.split()).count("another") >= 1


def test_a_pipe_is_as_wide_as_its_content(capsys):
    terminal.Console(width=40).print(wide_table())
    text = capsys.readouterr().out
    assert "a-network-of-a-very-long-name-that-folds" in text
    assert all(line.count(number) for line in text.splitlines() if "another" in line for number in NUMBERS)


# Words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (7, "0:07"),
        (3723, "1:02:03"),
        (183600, "2 days 3 h"),
        (86400, "1 day 0 h"),
        (float("nan"), "-:--"),
    ],
)
def test_durations_are_formatted_in_suitable_units(seconds, words):
    assert terminal.duration(seconds) == words


def test_counts_and_plans_are_formatted_in_suitable_units():
    assert terminal.count_of(1, "thread") == "1 thread"
    assert terminal.count_of(1000, "image") == "1,000 images"
    assert (format_hours(0.5), format_hours(3), format_hours(72)) == ("30.0 minutes", "3.0 hours", "3.0 days")


# Progress


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_progress_line_says_eta_rate_and_robust_accuracy(width):
    console = progress.Console(width=width, force_terminal=True, no_color=True, stderr=True)
    bars = progress.Bars(console)
    task = bars.add("attacking a-network-of-a-long-name", total=200, unit="images")
    clock = iter(range(0, 1000, 2))
    bars.shown.get_time = lambda: float(next(clock))
    for done in (0, 20, 40, 60):
        bars.update(task, done, total=200, found="robust 41.2 %")
    with console.capture() as captured:
        console.print(bars.shown.get_renderable())
    text = " ".join(captured.get().split())
    for words in ("30 %", "eta ", "images/s", "robust 41.2 %"):
        assert words in text
    assert "\u2026" not in text
    assert "eta -" not in text


def test_a_pipe_gets_an_occasional_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with progress.progress_bars() as bars:
        task = bars.add("attacking x", total=10, unit="images")
        bars.update(task, 5, found="robust 50.0 %")
    assert "attacking x: 50 %, eta " in capsys.readouterr().err


def test_robust_accuracy_so_far_counts_resumed_rows(place, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    assert invoke(*ATTACK, "--out", "out").exit_code == 0
    again = invoke(*ATTACK, "--out", "out")
    robust = json.loads((place / "out" / "result.json").read_text())["robust_accuracy"]
    assert f"robust {100 * robust:.1f} %" in again.stderr


# Output for programs


def test_json_is_the_only_output_on_stdout(place):
    result = invoke(*ATTACK, "--json", "-", "--out", "out")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((place / "out" / "result.json").read_text())
    assert "clean accuracy" in result.stderr
    assert json.loads(invoke("list", "--json", "-").stdout)["recipes"]


def test_quiet_prints_errors_only(place):
    for arguments in (["-q", *ATTACK, "--out", "a"], [*ATTACK, "--quiet", "--out", "b"]):
        result = invoke(*arguments)
        assert (result.exit_code, result.output) == (0, "")
        assert (place / arguments[-1] / "result.json").is_file()
    assert invoke("list").stdout  # it lasts for one command
    wrong = invoke("-q", *ATTACK, "--limit", 0)
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("robust-lr: limit = 0")


def test_a_dry_run_checks_and_writes_nothing(place):
    before = sorted(place.rglob("*"))
    for arguments in ([*ATTACK, "--out", "out"], [*TRAIN, "--out", "run"]):
        result = invoke(*arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        assert "8 " in result.stdout
        assert "nothing was" in result.stdout
    assert invoke(*ATTACK, "--dry-run", "--limit", 9).exit_code == 2
    table = invoke("table9", "--dry-run")
    assert table.exit_code == 0, table.output
    assert "LR-Net-26 adversarial" in table.stdout
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell):
    result = invoke("completion", shell)
    if result.exit_code == 0:  # click asks bash for its version
        assert "_ROBUST_LR_COMPLETE" in result.stdout


def test_names_of_protocols_complete():
    from click.shell_completion import ShellComplete

    found = ShellComplete(main, {}, "robust-lr", "_ROBUST_LR_COMPLETE").get_completions(
        ["attack", "--protocol"], "madry-c"
    )
    assert [each.value for each in found] == ["madry-cifar10"]


# Checked before the work starts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*ATTACK, "--json", "file/x.json"], "--json file: "),
        ([*ATTACK, "--json", "folder"], "--json folder is a folder"),
        ([*ATTACK, "--out", "file/below"], "file is a file"),
        ([*ATTACK, "--limit", "0"], "limit = 0"),
        (
            [*ATTACK, "--threads", HUGE],
            f"threads = {HUGE}: must be at least 0 and at most",
        ),
        ([*ATTACK, "--batch-size", HUGE], f"batch_size = {HUGE}: must be at most"),
        ([*ATTACK, "--compute-batch", "1000000000"], "at most"),
        ([*ATTACK, "--workers", "100000"], "workers = 100000: must be at least 0 and at most"),
        ([*ATTACK, "--set", f"restarts={HUGE}"], f"restarts = {HUGE}"),
        (["attack", "--untargeted", "--set", f"steps={HUGE}"], f"steps = {HUGE}"),
        (["attack", "--untargeted", "--set", "eps=300"], "for 8 of 255 levels write 8/255"),
        (["attack", "--untargeted", "--set", "steps=3", "--set", "steps=4"], "--set steps is given 2 times"),
        (["attack", "--protocol", "sweep-eps", "--figure", "x.foo"], "--figure x.foo: the suffix decides the format"),
        (["attack", "--targeted", "--save-targets", "file/x.json"], "--save-targets file: "),
        (["attack", "--untargeted", *MODEL, "--mean", "125", "--std", "60"], "divide values for 0..255 by 255"),
        (["table9", "--jobs", "0"], "jobs = 0: must be at least 1"),
        (["table9", "--limit", "0"], "limit = 0: must be at least 1"),
        (["table9", "--json", "file/x.json"], "--json file: "),
        ([*TRAIN, "--set", "data.workers=100000"], "workers = 100000"),
        (["adv-train", "empty.toml"], "empty.toml has no [model]"),
        (["adv-train", "--resume", "--out", "gone"], "gone holds no run to resume"),
        (["adv-train", "--resume", "--fresh"], "give only one of them"),
        (["attack", "--target"], "No such option '--target'"),
        (["atack"], "did you mean 'attack'?"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(place, arguments, words):
    (place / "file").write_text("mine")
    (place / "folder").mkdir()
    (place / "empty.toml").touch()
    before = sorted(place.rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


# Errors that nobody foresaw


MODELS = """
import sys, torch

class Model(torch.nn.Module):
    def __init__(self, error):
        super().__init__()
        self.linear, self.error = torch.nn.Linear(64, 2), error

    def forward(self, x):
        if bool(((x[:, 0, 0, 0] - x[:, 0, 0, 1]).abs() > 0.2).any()):
            raise self.error
        return self.linear(x.flatten(1))

def fails():
    return Model(ZeroDivisionError("mine"))

def leaves():
    return Model(SystemExit(3))

def leaves_at_once():
    sys.exit(3)
"""


@pytest.mark.parametrize(("name", "kind"), [("fails", "ZeroDivisionError"), ("leaves", "SystemExit")])
def test_a_model_that_fails_in_the_middle_is_one_line_that_names_the_image(place, name, kind):
    (place / "nets.py").write_text(MODELS)
    images = np.full((100, 8, 8), 100, np.uint8)
    images[90, 0, 0] = 200  # the guards have seen none like it
    np.savez("many.npz", images=images, labels=np.arange(100) % 2)
    chosen = ["--model", f"nets.py:{name}", "--preset", "none", "--data", "npz:many.npz", "--out", "out"]
    result = invoke("attack", "--untargeted", *chosen, "--set", "eps=0.01", "--steps", 1, "--compute-batch", 8)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert f"the model failed on image 90: {kind}" in result.stderr
    assert (place / "out" / "ledger.sqlite").is_file()
    assert not (place / "out" / "result.json").exists()


def test_a_model_that_exits_python_is_one_line(place):
    (place / "nets.py").write_text(MODELS)
    result = invoke("attack", "--untargeted", "--model", "nets.py:leaves_at_once", "--data", "npz:small.npz")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "SystemExit: 3" in result.stderr


def test_any_other_error_is_one_line_and_a_traceback_on_request(monkeypatch):
    @click.command()
    def broken():
        raise KeyError("what")

    monkeypatch.setattr(type(main), "get_command", lambda *arguments: broken)
    result = invoke("list")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "unexpected KeyError: 'what'; ROBUST_LR_TRACEBACK=1" in result.stderr
    monkeypatch.setenv("ROBUST_LR_TRACEBACK", "1")
    assert isinstance(invoke("list").exception, KeyError)


def test_an_interrupt_while_starting_shows_no_traceback(place):
    process = subprocess.Popen(
        [sys.executable, "-m", "robust_lr", *ATTACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "torch/lib" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)  # until PyTorch is being imported
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in output + errors
    assert process.returncode in (130, -signal.SIGINT)


# Training


def test_a_run_is_resumed_by_its_folder_and_started_over_on_request(place):
    arguments = [*TRAIN, "--out", "run"]
    assert invoke(*arguments).exit_code == 0
    assert "run is already finished" in invoke("adv-train", "--resume", "run").stdout
    (place / "run" / "mine.txt").write_text("mine")
    assert "--fresh" in invoke(*arguments).stderr
    (place / "run" / "states").rename(place / "gone")  # a run that failed before its first state
    again = invoke(*arguments, "--fresh")
    assert again.exit_code == 0, again.output
    assert "Trained resnet18" in again.stdout
    assert (place / "run" / "mine.txt").read_text() == "mine"


def test_resuming_with_another_value_is_refused(place):
    assert invoke(*TRAIN, "--out", "run").exit_code == 0
    result = invoke("adv-train", "--resume", "run", "--set", "train.lr=0.3")
    assert result.exit_code == 2
    assert "train.lr" in result.stderr


@pytest.mark.parametrize(
    ("eps", "words"), [("8/255", "--protocol madry-cifar10"), ("16/255", "--targeted"), ("4/255", "--eps 4/255")]
)
def test_the_suggested_attack_has_the_eps_of_training(place, eps, words):
    result = invoke(*TRAIN, "--set", f"attack.eps={eps}", "--out", "run")
    assert f"robust-lr attack {words}" in result.stdout or f"{words} --checkpoint run" in result.stdout


def test_unusual_values_give_a_warning(place, caplog):
    np.savez("small.npz", images=np.zeros((8, 32, 32, 3), np.uint8), labels=np.arange(8) % 2)
    arguments = [word.replace("model.stem=small", "model.stem=imagenet") for word in TRAIN]
    with caplog.at_level(logging.WARNING, "robust_lr"):
        invoke(*arguments, "--set", "recipe=madry", "--dry-run")
        assert not caplog.messages
        invoke(*(word.replace("attack.steps=1", "recipe=madry") for word in arguments), "--out", "run")
    assert any("set model.stem = 'small'" in message for message in caplog.messages)
    assert any("madry is published with 15 epochs or more" in message for message in caplog.messages)


def test_an_interrupted_watch_does_not_sound_like_the_end_of_training(place):
    assert invoke(*TRAIN, "--out", "run").exit_code == 0
    code = (
        "import robust_lr.commands.watch as w, sys\n"
        "from robust_lr.cli import main\n"
        "def stop(*a): raise KeyboardInterrupt\n"
        "w.follow = stop\n"
        "main(['watch', 'run'], prog_name='robust-lr')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert "run is no longer watched; its training is not affected." in result.stdout
    assert result.stderr == ""


# Images of mixed sizes


def test_mixed_sizes_are_resized_and_cropped(place):
    from PIL import Image

    for number, size in enumerate([(20, 12), (9, 14), (10, 10), (30, 8)]):
        folder = place / "photos" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    (place / "nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n"
    )
    chosen = ["--model", "nets.py:make", "--preset", "none", "--data", "folder:photos", "--out", "out", "--steps", 1]
    assert invoke("attack", "--untargeted", *chosen).exit_code == 2
    result = invoke("attack", "--untargeted", *chosen, "--resize", 8, "--crop", 8)
    assert result.exit_code == 0, result.output
    assert json.loads((place / "out" / "result.json").read_text())["data"] == "folder:photos (8 -> 8 pixels)"
    assert "the crop no larger" in invoke("attack", "--untargeted", *chosen, "--resize", 8, "--crop", 9).stderr


@pytest.mark.parametrize(
    "arguments",
    [["attack", "--quiet", "--bogus"], ["-q", "attack", "--limit", "0"], ["attack", "--json", "-", "--bogus"]],
)
def test_console_options_end_with_their_command_even_if_it_fails(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2
    assert not terminal.console.quiet
    assert not terminal.console.stderr
