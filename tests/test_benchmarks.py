"""The scripts that time kernels and networks run, small, and write what they promise."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [[], ["--stepwise-stem"]], ids=str)
def test_networks(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "networks.json"
    small = ["--size", "32", "--width", "0.1", "--batch", "2", "--repeats", "1", "--threads", "1"]
    done = run("networks.py", *small, *options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    found = record["float32"]
    wanted = {"forward", "attack", "folded forward", "folded attack", "training", "training memory"}
    assert set(found["LR-Net-26 / ResNet-26"]) == wanted
    assert all(ratio > 0 for ratio in found["LR-Net-26 / ResNet-26"].values())
    # A step holds at least the weights, their gradients and the momentum.
    assert all(size > 3 * 4 * 100_000 for size in found["training_bytes"].values())
    assert record["settings"]["stepwise_stem"] == bool(options)
    one = "robust_lr::stem_relation" in found["folded_attack_operator_seconds"]["LR-Net-26"]
    assert one == (not options and record["kernels"]["uses"] == "compiled kernels")


def test_gpu_check_has_all_its_steps(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    gpu_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_check)
    steps = gpu_check.later_steps(tmp_path, tmp_path / "local_relation")
    assert list(steps) == ["tests", "memcheck", "racecheck", "cuda_layers", "networks", "authors_op"]
    for name in ("cuda_layers", "networks", "authors_op"):
        script = BENCHMARKS.parent / steps[name][1]
        assert script.exists()
        assert str(tmp_path / f"{name}.json") in steps[name]
    assert "authors_op" not in gpu_check.later_steps(tmp_path, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_needs_a_gpu(tmp_path: Path) -> None:
    done = run("gpu_check.py", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "gpu-check: PyTorch finds no GPU, so nothing was checked\n")
    assert not (tmp_path / "out").exists()
