"""The scripts that measure run, small, and write what they promise."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_convolutions(tmp_path: Path) -> None:
    small = ["--size", "32", "--width", "0.1", "--batch", "2", "--repeats", "1", "--threads", "1"]
    done = run("convolutions.py", *small, "--out", str(tmp_path / "convolutions.json"))
    assert done.returncode == 0, done.stderr
    networks = json.loads((tmp_path / "convolutions.json").read_text())["networks"]
    assert {"conv1", "layer1.0.conv2", "layer1.0.downsample.0"} <= set(networks["ResNet-26"]["layers"])
    assert {"layer1.0.conv2.both", "layer2.0.conv2.query"} <= set(networks["LR-Net-26"]["layers"])
    for found in networks.values():
        for which, ratio in found["PyTorch / ours"].items():
            each = [sum(row[f"{which} {whose}"] for row in found["layers"].values()) for whose in ("PyTorch", "ours")]
            assert ratio == pytest.approx(each[0] / each[1])


def test_lrnet_training(tmp_path: Path) -> None:
    data = noise(tmp_path / "small.npz", 12, 10, both=40)
    values = [f"data.name=npz:{data}", "data.limit=0", "validation.images=10", "model.width=0.0625", "attack.steps=1"]
    values += ["train.batch_size=8", "train.epochs=1", "train.milestones=[]", "train.device=cpu"]
    options = ["--networks", "lrnet26", "--variants", "clip", "no-prior-decay", "--seeds", "0", "--label", "small"]
    options += ["--runs", str(tmp_path / "runs"), *[word for value in values for word in ("--set", value)]]
    done = run("lrnet_training.py", "--out", str(tmp_path / "out.json"), *options)
    assert done.returncode == 0, done.stderr
    networks = json.loads((tmp_path / "out.json").read_text())["networks"]
    assert set(networks) == {"lrnet26 clip steep small", "lrnet26 no-prior-decay steep small"}
    for row in networks.values():
        assert row["hypothesis"]
        assert row["over_seeds"]["clean"]["mean"] == row["runs"][0]["clean"]


def test_repeated_results_are_compared_figure_by_figure() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from repeat import differences
    finally:
        sys.path.remove(str(BENCHMARKS))
    before = {"rows": [{"clean": 0.5, "seconds": 3.0}], "gone": 1}
    after = {"rows": [{"clean": 0.6, "seconds": 9.0}], "new": 2}
    assert differences(before, after) == ["rows[0].clean: 0.5 -> 0.6", "gone: 1 -> absent", "new: absent -> 2"]
    assert differences(before, before) == []


def test_training(tmp_path: Path) -> None:
    small = ["--width", "0.1", "--rounds", "1", "--threads", "1", "--out", str(tmp_path / "training.json")]
    # large enough that the time of a step is that of its arithmetic, also beside other tests
    for options in (
        ["--only", "step", "--size", "28", "--batch", "32", "--repeats", "5"],
        ["--only", "loading", "--size", "12", "--batch", "4", "--repeats", "1"],
    ):
        done = run("training.py", *options, *small)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "training.json").read_text())
    assert all(row["adversarial_over_regular"] > 1 for row in record["step"].values())
    assert len(record["loading"]) == 4
    assert all(0 <= row["waiting_share"] < 1 for row in record["loading"].values())


@pytest.mark.slow
def test_cuda_graphs(tmp_path: Path) -> None:
    """On a CPU the switch has no effect; what remains is that rows are compared and times written."""
    small = ["--device", "cpu", "--size", "16", "--width", "0.0625", "--images", "6", "--batch", "4", "--steps", "2"]
    done = run("cuda_graphs.py", *small, "--out", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    attacks = json.loads((tmp_path / "out.json").read_text())["attacks"]
    assert len(attacks) == 2 * 3
    assert all(row["rows"] == 6 and row["rows that differ"] == [] for row in attacks.values())


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_check")


def test_gpu_check_has_all_its_steps(gpu_check: Any, tmp_path: Path) -> None:
    steps = gpu_check.steps(tmp_path, tmp_path / "local_relation")
    benchmarks = ["cuda_layers", "cuda_graphs", "networks", "networks_stepwise", "authors_op"]
    assert list(steps) == ["build", "tests", "memcheck", "racecheck", "synccheck", *benchmarks]
    for name in benchmarks:
        assert (BENCHMARKS.parent / steps[name].command[1]).exists()
        assert str(tmp_path / f"{name}.json") in steps[name].command
    assert "--stepwise-stem" in steps["networks_stepwise"].command
    assert "authors_op" not in gpu_check.steps(tmp_path, None)


def test_gpu_check_goes_on_after_a_failure(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that fail, hang or are not there leave their mark in the summary, and a second call adds to it."""

    def python(code: str, seconds: int = 60, **options: Any) -> Any:
        return gpu_check.Step([sys.executable, "-c", code], seconds, **options)

    steps = {
        "build": python("import os; print(os.environ['ROBUST_LR_EXTENSION'])"),
        "tests": python("print('no'); raise SystemExit(3)"),
        "memcheck": python("import time; print('so far', flush=True); time.sleep(60)", 2),
        "racecheck": python("", skipped="not installed"),
        "networks": python("import os; print(os.environ['A'])", environment={"A": "b"}),
    }
    monkeypatch.setattr(gpu_check, "steps", lambda out, authors: steps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "device_name", lambda device: "a GPU")

    def check(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path), *arguments])
        code: int = gpu_check.main()
        return code, json.loads((tmp_path / "summary.json").read_text())["steps"]

    code, found = check()
    assert code == 1
    assert {name: step["state"] for name, step in found.items()} == {
        "build": "passed",
        "tests": "failed with exit code 3",
        "memcheck": "failed: took more than 2 s",
        "racecheck": "skipped: not installed",
        "networks": "passed",
    }
    assert [found[name]["last words"] for name in ("build", "tests", "memcheck", "networks")] == [
        ["require"], ["no"], ["so far"], ["b"]
    ]  # fmt: skip
    steps["tests"] = python("print('yes')")
    code, found = check("--only", "tests")
    assert code == 0
    assert (found["tests"]["state"], found["networks"]["state"]) == ("passed", "passed")
    assert "== tests\nno\n" in (tmp_path / "log.txt").read_text()
    steps["build"] = python("raise SystemExit(1)")
    assert check("--only", "build", "networks")[0] == 1
    assert "build failed" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(SystemExit) as caught:
        check("--only", "test")
    assert caught.value.code == 2
    assert "there is no step 'test', but build, tests" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_needs_a_gpu(tmp_path: Path) -> None:
    done = run("gpu_check.py", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "gpu-check: PyTorch finds no GPU, so nothing was checked\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["torchattacks", "last"])
def test_a_program_of_the_evaluation_benchmark_runs_in_its_own_process(program: str) -> None:
    done = run("evaluation.py", "--run", program, "", "16", str(16 / 255), str(2 / 255), "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] > 0
    assert len(found["held"]) == 16
    assert set(found["policy"]) == {
        "OMP_WAIT_POLICY",
        "OMP_NUM_THREADS",
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
        "MKL_NUM_THREADS",
    }
    assert ("overhead" in found) == (program == "last")
