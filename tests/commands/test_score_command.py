"""``robust-lr score`` and ``robust-lr transfer``: adversarial images on disk, judged by any model."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from robust_lr.cli import main

NETS = """
import torch
from torch import nn

def make(seed, classes=3):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    net[1].weight.data.mul_(3)
    return net

def first():
    return make(0)

def second():
    return make(1)

def wide():
    return make(0, classes=5)

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
"""


def call(*arguments):
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return found.exit_code, " ".join(found.output.split())


def attack(model, out, *more):
    return call(
        "attack", "--untargeted", "--set", "steps=2", "--no-check", "--device", "cpu", "--threads", "1",
        "--model", f"nets.py:{model}", "--data", "npz:small.npz", "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two models with saved images, one without, one on fewer images."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "dont_write_bytecode", True)
        images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
        np.savez("small.npz", images=images, labels=np.arange(24) % 3)
        (path / "nets.py").write_text(NETS)
        for name in ("first", "second"):
            code, output = attack(name, name, "--save-images")
            assert code == 0, output
        assert attack("first", "plain")[0] == 0
        assert attack("first", "few", "--save-images", "--limit", "12")[0] == 0
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def test_the_attacked_model_reproduces_its_robust_accuracy(here):
    code, output = call("score", "first", "--model", "nets.py:first", "--json", "score.json")
    assert code == 0, output
    assert "(the same weights)" in output
    found, own = (json.loads((here / name).read_text()) for name in ("score.json", "first/result.json"))
    assert found["accuracy"] == own["robust_accuracy"]
    assert found["accuracy_rounded"] == own["robust_accuracy_rounded"]


def test_another_model_is_evaluated_on_the_images(here):
    code, output = call("score", "first", "--model", "nets.py:second", "--json", "other.json")
    assert code == 0, output
    assert "the same weights" not in output
    assert not json.loads((here / "other.json").read_text())["same_weights"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "missing", "--model", "nets.py:first"], "missing"),
        (["score", "plain", "--model", "nets.py:first"], "holds no adversarial images"),
        (["score", "first", "--model", "nets.py:wide"], "3 classes"),
        (["score", "first", "--model", "nets.py:narrow"], "the model fails on images"),
        (["score", "first", "--model", "nets.py:nobody"], "nobody"),
        (["score", "first", "--preset", "cifar10"], "give --model NAME too"),
        (["score", "first", "--model", "nets.py:first", "--json", "first"], "first"),
        (["transfer", "first"], "two runs or more"),
        (["transfer", "first", "first"], "first is given twice"),
        (["transfer", "first", "missing"], "missing"),
        (["transfer", "first", "few"], "are of different images"),
    ],
)
def test_bad_input_ends_in_one_line(here, arguments, message):
    before = sorted(path.name for path in here.iterdir())
    code, output = call(*arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert sorted(path.name for path in here.iterdir()) == before


def test_damaged_images_and_results_are_refused(here, tmp_path):
    import shutil

    shutil.copytree("first", tmp_path / "damaged")
    (file,) = (tmp_path / "damaged" / "images").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    code, output = call("score", tmp_path / "damaged", "--model", "nets.py:first")
    assert (code, "does not match its saved hash" in output) == (2, True), output
    file.write_bytes(bytes(content[:100]))
    code, output = call("score", tmp_path / "damaged", "--model", "nets.py:first")
    assert (code, "Traceback" in output) == (2, False), output
    (tmp_path / "damaged" / "result.json").write_text("{")
    assert call("score", tmp_path / "damaged", "--model", "nets.py:first")[0] == 2
    assert call("transfer", "first", tmp_path / "damaged")[0] == 2
