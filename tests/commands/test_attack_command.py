"""``robust-lr attack`` beyond what test_cli.py has: any model, guards, targets, shards."""

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.results.ledger import read

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


def test_a_user_s_callable_is_attacked(here):
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


def test_each_model_has_a_separate_folder_by_default(here):
    for weights in ([], ["--weights", "other.pt"]):
        result = CliRunner().invoke(main, ["attack", "--targeted", "--set", "steps=1", *MINE, *weights])
        assert result.exit_code == 0, result.output
    assert sorted(os.listdir("runs")) == ["nets-make", "nets-make-other"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nets.py:make"], "--model needs images: give --data NAME"),
        ([*MINE, "--checkpoint", "x"], "--checkpoint and --model both name a model: give only one"),
        (["--weights", "other.pt"], "--weights applies only to --model: give --model NAME too"),
        (["--preset", "none"], "--preset applies only to --model"),
        (["--mean", "0.5"], "--mean applies only to --model"),
        (["--set", "model.width=0.5"], "--set model.KEY applies only to --model"),
        ([*MINE, "--mean", "0.5"], "--mean and --std belong together"),
        ([*MINE, "--std", "0.5"], "--mean and --std belong together"),
        ([*MINE, "--mean", "0.5", "--std", "0.5", "--preset", "none"], "give --preset, or --mean and --std"),
        ([*MINE, "--mean", "a,b", "--std", "0.5"], "--mean 'a,b': give numbers separated by commas"),
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


# targets and shards


def rows(out):
    return read(Path(out) / "ledger.sqlite")


def test_targets_are_saved_and_used_for_another_model(here):
    targeted = ("--protocol", "lrnet-targeted", "--set", "steps=2", "--device", "cpu")
    invoke = lambda *arguments: CliRunner().invoke(main, ["attack", *targeted, *MINE, *map(str, arguments)])  # noqa: E731
    result = invoke("--seed", 5, "--out", "first", "--save-targets", "targets.json")
    assert result.exit_code == 0, result.output
    saved = json.loads((here / "targets.json").read_text())
    assert (saved["seed"], saved["num_classes"]) == (5, 3)
    assert saved["targets_sha256"] == record("first")["targets_sha256"]
    result = invoke("--weights", "other.pt", "--targets", "targets.json", "--out", "second")
    assert result.exit_code == 0, result.output
    assert "targeted (given)" in result.output
    assert record("second")["targets_sha256"] == saved["targets_sha256"]
    assert record("second")["protocol"]["target"] == "given"
    assert [row.target for row in rows("second")] == [row.target for row in rows("first")]
    saved["targets"][3][2] = saved["targets"][3][1]
    (here / "equal.json").write_text(json.dumps(saved))
    saved["targets"] = saved["targets"][:20]
    (here / "few.json").write_text(json.dumps({**saved, "targets_sha256": None} | {"targets": saved["targets"][:3]}))
    for arguments, words in [
        (["--targets", "equal.json"], "is its true class"),
        (["--targets", "few.json"], "was changed after it was saved"),
        (["--targets", "gone.json"], "'gone.json' cannot be read"),
        (["--set", "target=given"], "target = 'given': pass the --targets as well"),
    ]:
        result = invoke(*arguments, "--out", "third")
        assert result.exit_code == 2, result.output
        assert words in result.stderr
    assert not (here / "third").exists()


def test_untargeted_attacks_neither_take_nor_save_targets(here):
    data = rlr.data.load("npz:small.npz", "test")
    rlr.draw_targets(data).save("targets.json")
    assert "leave them out" in attack(*MINE, "--targets", "targets.json").stderr
    assert "is untargeted" in attack(*MINE, "--save-targets", "new.json").stderr
    assert not (here / "new.json").exists()


def test_merge_merges_shards_of_the_command_line(here):
    assert attack(*MINE, out="whole").exit_code == 0
    for i in (1, 2):
        result = attack(*MINE, "--shard", f"{i}/2", out=f"s{i}")
        assert result.exit_code == 0, result.output
        assert f"shard {i}/2: 12 images" in result.output
    result = CliRunner().invoke(main, ["merge", "s2", "s1", "--out", "joined"])
    assert result.exit_code == 0, result.output
    assert "2 shards merged" in result.output
    assert "24" in result.output
    assert [replace(row, seconds=0) for row in rows("joined")] == [replace(row, seconds=0) for row in rows("whole")]
    assert "write i/n" in attack(*MINE, "--shard", "3/2", out="new").stderr
    result = CliRunner().invoke(main, ["merge", "s1", "--out", "new"])
    assert (result.exit_code, result.stderr) == (2, "robust-lr: missing: shard 2/2; give the folders of all 2 shards\n")


def test_shards_have_separate_folders_by_default(here):
    for i in (1, 2):
        arguments = ["attack", "--untargeted", "--set", "steps=1", *MINE, "--shard", f"{i}/2"]
        assert CliRunner().invoke(main, arguments).exit_code == 0
    folder = here / "runs" / "nets-make" / "attacks" / "lrnet-untargeted,steps=1"
    assert sorted(os.listdir(folder)) == ["shard-1-of-2", "shard-2-of-2"]


# the folder


def test_another_evaluation_in_the_folder_is_an_error_that_says_what_to_do(here):
    assert attack(*MINE, "--limit", 8).exit_code == 0
    result = attack(*MINE)
    assert result.exit_code == 2
    assert "images was 8 and is 24; start afresh (--fresh), or choose another folder (--out)" in result.stderr


def test_an_old_result_does_not_outlive_its_ledger(here, monkeypatch):
    assert attack(*MINE).exit_code == 0
    assert attack(*MINE, "--fresh", "--targets", "gone.json").exit_code == 2
    assert os.path.exists("out/result.json")  # wrong input changes nothing
    (here / "soft.py").write_text(NETS.replace("nn.Linear(48, 3))", "nn.Linear(48, 3), nn.Softmax(1))"))
    assert attack("--model", "soft.py:make", "--data", "npz:small.npz", "--fresh").exit_code == 2
    assert os.path.exists("out/result.json")

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("robust_lr.evaluation.harness"), "classify_clean_images", stopped)
    assert attack(*MINE, "--fresh").exit_code == 130
    assert os.listdir("out") == ["ledger.sqlite"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_outside_32_bits_are_refused(here, seed):
    result = attack(*MINE, "--seed", seed)
    assert (result.exit_code, result.stderr) == (2, f"robust-lr: seed = {seed}: must be between 0 and 2^32 - 1\n")
