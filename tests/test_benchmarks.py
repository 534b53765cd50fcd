"""The scripts that measure run, small, and write what they promise."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import noise

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


def test_seeds(tmp_path: Path) -> None:
    data = noise(tmp_path / "small.npz", 12, 10, both=24)
    values = [f"data.name=npz:{data}", "model.width=0.0625", "attack.steps=1", "train.epochs=1"]
    values += ["train.batch_size=8", "train.milestones=[]", "train.warmup_epochs=0", "train.device=cpu"]
    options = ["--seeds", "0", "1", "--runs", str(tmp_path / "runs")]
    options += [word for value in values for word in ("--set", value)]
    done = run("seeds.py", "--out", str(tmp_path / "seeds.json"), *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "seeds.json").read_text())
    assert record["device"].startswith("cpu: ")
    for row in record["networks"].values():
        for name in ("clean", "lrnet-targeted", "lrnet-untargeted"):
            found = [each["accuracy"][name] for each in row["runs"]]
            assert row["over_seeds"][name]["mean"] == pytest.approx(sum(found) / 2)
        results = [each["results"]["lrnet-targeted"] for each in row["runs"]]
        assert [(result["n"], result["seed"]) for result in results] == [(24, 0), (24, 1)]


def test_training(tmp_path: Path) -> None:
    small = ["--size", "12", "--width", "0.1", "--batch", "4", "--repeats", "1", "--threads", "1"]
    done = run("training.py", "--only", "step", "loading", *small, "--out", str(tmp_path / "training.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert all(row["adversarial_over_regular"] > 1 for row in record["step"].values())
    assert len(record["loading"]) == 4
    assert all(0 <= row["waiting_share"] < 1 for row in record["loading"].values())


def test_gpu_check_has_all_its_steps(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    gpu_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_check)
    steps = gpu_check.later_steps(tmp_path, tmp_path / "local_relation")
    assert list(steps) == ["tests", "memcheck", "racecheck", "cuda_layers", "networks", "evaluation", "authors_op"]
    for name in ("cuda_layers", "networks", "evaluation", "authors_op"):
        script = BENCHMARKS.parent / steps[name][1]
        assert script.exists()
        assert str(tmp_path / f"{name}.json") in steps[name]
    assert "authors_op" not in gpu_check.later_steps(tmp_path, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_needs_a_gpu(tmp_path: Path) -> None:
    done = run("gpu_check.py", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "gpu-check: PyTorch finds no GPU, so nothing was checked\n")
    assert not (tmp_path / "out").exists()
