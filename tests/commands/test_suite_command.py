"""``robust-lr suite``."""

import os
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from robust_lr.cli import main
from robust_lr.results.stored import LEDGER

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
"""

SUITE = """
seeds = [0, 1]
protocols = [{ protocol = "madry-cifar10", name = "pgd", steps = 2 }]
[models.net]
source = "nets.py:make"
[data.small]
name = "npz:small.npz"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
    np.savez("small.npz", images=images, labels=np.arange(24) % 3)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "mine.toml").write_text(SUITE)
    return tmp_path


def suite(*arguments):
    return CliRunner().invoke(main, ["suite", *arguments])


def test_a_suite_prints_its_table_and_writes_a_report(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robust-lr", "suite", "mine.toml", "--device", "cpu"])
    result = suite("mine.toml", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "2 evaluations in runs/mine" in result.output
    assert len(list((here / "runs" / "mine").rglob(LEDGER))) == 2
    page = (here / "runs" / "mine" / "report.html").read_text()
    assert "<h1>Suite mine</h1>" in page
    assert "robust-lr suite mine.toml --device cpu" in page
    again = suite("mine.toml", "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert (here / "runs" / "mine" / "report.html").read_text() == page


def test_a_dry_run_lists_everything_and_writes_nothing(here):
    before = sorted(os.walk("."))
    result = suite("mine.toml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count("0 / 24") == 2
    assert "at most" in result.output
    assert sorted(os.walk(".")) == before


def test_shards_of_a_suite_are_merged_by_the_last(here):
    for index in (1, 2):
        result = suite("mine.toml", "--device", "cpu", "--shard", f"{index}/2", "--out", "out", "--seeds", "0")
        assert result.exit_code == 0, result.output
    assert "1 evaluation in out" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slow"], "no suite 'slow'"),
        (["mine.toml", "--seeds", "a"], "--seeds 'a': give whole numbers"),
        (["mine.toml", "--jobs", "0"], "--jobs = 0: must be at least 1"),
        (["mine.toml", "--shard", "3/2"], "shard '3/2'"),
        (["mine.toml", "--checkpoint", "nowhere"], "checkpoint 'nowhere'"),
        (["mine.toml", "--checkpoint", "a/b", "--checkpoint", "c/b"], "two checkpoints have the same name"),
        (["mine.toml", "--data", "cifar9"], "cifar9"),
        (["mine.toml", "--eps", "x"], "eps = 'x'"),
        (["mine.toml", "--limit", "-1"], "--limit = -1"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_anything_is_written(here, arguments, words):
    before = sorted(os.walk("."))
    result = suite(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert words.removeprefix("--") in result.stderr
    assert sorted(os.walk(".")) == before
