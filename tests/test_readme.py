"""What the README shows: its Python runs as written, its commands parse, the files that it names are there."""

import glob
import os
import re
import shlex
from pathlib import Path

import click
import pytest

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.config.training import find
from robust_lr.protocols.presets import PROTOCOLS, SWEEPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("robust-lr ")]


def test_python_examples_run(tmp_path, monkeypatch):
    load = rlr.data.load
    monkeypatch.setattr(rlr.data, "load", lambda *args, **options: load(*args, **options).take(100))
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in blocks("python"):
        exec(example, names)
    assert names["result"].n == 100
    assert names["adversarial"].shape == names["images"].shape
    assert (tmp_path / "runs/mine/pgd20/result.json").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    words = shlex.split(line, comments=True)[1:]
    command = main
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    values = command.make_context(command.name, words).params
    if values.get("config") not in (None, "CONFIG"):
        find(values["config"])
    if values.get("protocol") not in (None, "NAME"):
        assert {**PROTOCOLS, **SWEEPS}[values["protocol"]]


def test_files_that_are_named_are_there():
    named = re.findall(r"`((?:benchmarks|configs|robust_lr)/[^`]*|\w+\.md|pyproject\.toml)`", README)
    assert len(named) > 8
    for name in named:
        choices = re.search(r"\{(.*)\}", name)
        for choice in choices[1].split(",") if choices else [""]:
            assert glob.glob(os.fspath(ROOT / re.sub(r"\{.*\}", choice, name))), name
