"""``robust-lr attack`` beyond what test_cli.py has: any model, guards, targets, shards."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main

NETS = """
import torch
from torch import nn

def make(scale=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    net[1].weight.data.mul_(scale)
    return net
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with images of 3 classes, code and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
    np.savez("small.npz", images=images, labels=np.arange(24) % 3)
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(1)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).state_dict(), "other.pt")
    return tmp_path


def attack(*arguments, out="out"):
    common = ["attack", "--untargeted", "--set", "steps=2", "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(main, [*common, "--out", out, *map(str, arguments)])


def record(out="out"):
    with open(os.path.join(out, "result.json")) as file:
        return json.load(file)


MINE = ("--model", "nets.py:make", "--data", "npz:small.npz")


def test_a_callable_of_the_user_s_is_attacked(here):
    result = attack(*MINE)
    assert result.exit_code == 0, result.output
    assert (record()["model"], record()["n"]) == ("nets-make", 24)
    room = {}
    exec(NETS, room)
    data = rlr.data.load("npz:small.npz", "test")
    protocol = rlr.protocols.PGD(eps=16 / 255, step_size=1 / 255, steps=2)
    assert record()["robust_accuracy"] == rlr.evaluate(room["make"](), data, protocol).robust.value


def test_options_weights_and_statistics_reach_the_model(here):
    for name, arguments in {
        "plain": [],
        "scaled": ["--set", "model.scale=9.0"],
        "other": ["--weights", "other.pt"],
        "preset": ["--preset", "imagenet"],
        "mean": ["--mean", "0.5", "--std", "0.2,0.2,0.3"],
    }.items():
        result = attack(*MINE, *arguments, out=name)
        assert result.exit_code == 0, result.output
    hashes = {name: record(name)["weights_sha256"] for name in ("plain", "scaled", "other", "preset", "mean")}
    assert len(set(hashes.values())) == 5
    assert record("other")["model"] == "nets-make-other"


def test_a_guard_can_be_allowed(here):
    (here / "soft.py").write_text(
        "from torch.nn import *\ndef make(): return Sequential(Flatten(), Linear(48, 3), Softmax(1))"
    )
    soft = ("--model", "soft.py:make", "--data", "npz:small.npz")
    result = attack(*soft)
    assert result.exit_code == 2
    assert result.stderr.startswith("robust-lr: the model returns probabilities")
    assert not (here / "out").exists()
    assert attack(*soft, "--allow", "probabilities").exit_code == 0
    result = attack(*soft, "--allow", "probability")
    assert "unknown guard 'probability'" in result.stderr


def test_each_model_has_a_folder_of_its_own_by_default(here):
    for weights in ([], ["--weights", "other.pt"]):
        result = CliRunner().invoke(main, ["attack", "--targeted", "--set", "steps=1", *MINE, *weights])
        assert result.exit_code == 0, result.output
    assert sorted(os.listdir("runs")) == ["nets-make", "nets-make-other"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nets.py:make"], "which images? a model of --model needs --data NAME"),
        ([*MINE, "--checkpoint", "x"], "which model? give one of --checkpoint and --model"),
        (["--weights", "other.pt"], "--weights belongs to a model: give --model NAME as well"),
        (["--preset", "none"], "--preset belongs to a model"),
        (["--mean", "0.5"], "--mean belongs to a model"),
        (["--set", "model.width=0.5"], "--set model.KEY belongs to a model"),
        ([*MINE, "--mean", "0.5"], "--mean and --std belong together"),
        ([*MINE, "--std", "0.5"], "--mean and --std belong together"),
        ([*MINE, "--mean", "0.5", "--std", "0.5", "--preset", "none"], "give --preset, or --mean and --std"),
        ([*MINE, "--mean", "a,b", "--std", "0.5"], "--mean 'a,b': numbers with commas"),
        ([*MINE, "--mean", "0.5,0.5", "--std", "0.5,0.5"], "the model takes [N, 2, H, W]"),
        ([*MINE, "--preset", "imagnet"], "unknown preset 'imagnet': did you mean 'imagenet'"),
        ([*MINE, "--set", "model.size=3"], "nets.py:make failed: TypeError: make() got an unexpected"),
        ([*MINE, "--weights", "gone.pt"], "weights 'gone.pt': no such file"),
        (["--model", "torchvision:resnet18", "--data", "npz:small.npz"], "say what input the network expects"),
        (["--model", "resnet18", "--data", "npz:small.npz"], "resnet18 has no weights yet"),
        (["--model", "resnet18", "--data", "npz:small.npz", "--weights", "other.pt"], "does not fit the network"),
        ([*MINE, "--set", "eps"], "--set 'eps': write key=value, e.g. eps=8/255"),
    ],
)
def test_options_that_contradict_each_other_are_named_and_nothing_is_written(here, arguments, words):
    before = sorted(os.walk("."))
    result = attack(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert sorted(os.walk(".")) == before


def test_help_lists_every_option_under_a_heading():
    text = CliRunner().invoke(main, ["attack", "--help"], terminal_width=100).output
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Attack:", "Model:", "Images:", "Guards:", "Work and output:", "Other:"]
    assert text.index("Model:") < text.index("--weights") < text.index("Images:") < text.index("--limit")
