"""The command line on a model that draws random numbers."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from robust_lr.cli import main

SOURCE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(Noise(), torch.nn.Flatten(), torch.nn.Linear(784, 10))

class Noise(torch.nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)
"""


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(
        main, ["attack", "--limit", "12", "--no-check", "--data", "fashion-mnist-mini", *arguments]
    )
    return found.exit_code, " ".join(found.output.split())


def test_a_random_model_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SOURCE)
    model = ["--model", f"{tmp_path / 'nets.py'}:make", "--out", str(tmp_path / "out")]
    allow = ["--allow", "normalization"]
    code, output = run("--untargeted", *model, *allow)
    assert code == 2
    assert "--protocol autoattack-rand" in output
    code, output = run("--protocol", "autoattack-rand", *model, *allow, "--verdict-passes", "1")
    assert code == 2
    assert "verdict_passes = 1" in output
    eot = ["--set", "eot=3", "--set", "steps=2"]
    code, output = run("--untargeted", *eot, *model, *allow, "--verdict-passes", "4")
    assert code == 0, output
    assert "the model is random: images count as right if all of 4 passes are" in output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["randomness"]["passes"] == 4


def test_eot_on_a_deterministic_model_is_a_warning_in_one_line(tmp_path: Path) -> None:
    code, output = run("--untargeted", "--set", "eot=3", "--set", "steps=1", "--out", str(tmp_path / "out"))
    assert code == 0, output
    assert "warning: the model is deterministic" in output
    assert "UserWarning" not in output
