"""Everything that a GPU can say about the CUDA kernels, in one command: `make gpu-check`.

Builds them, runs their tests, runs all of them under compute-sanitizer (memcheck, racecheck and synccheck, where it is
installed), compares attacks that replay their steps as CUDA graphs with those that do not, row by row, times layers and
whole networks, with the stem as one operator and layer by layer, and the authors' operator where --authors names it
(make gpu-check AUTHORS=PATH). Writes what each step said to log.txt, its figures to a file of its own, and after each
step summary.json, which a later call for other steps (--only tests networks) adds to. A step that fails or takes too
long is no reason not to run the next. Exits with 1 where a step fails, and with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from robust_lr.ops import doctor, nvcc
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

ROOT = Path(__file__).parents[1]
SANITIZED = ("memcheck", "racecheck", "synccheck")


@dataclass(frozen=True)
class Step:
    """A command, how long it may take, and what it wants of the environment."""

    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None  # why it is not run


def steps(out: Path, authors: Path | None) -> dict[str, Step]:
    """All steps by name, in their order; what follows the build needs it."""

    def benchmark(name: str, seconds: int, *arguments: str, script: str | None = None) -> Step:
        command = [sys.executable, f"benchmarks/{script or name}.py", *arguments, "--out", str(out / f"{name}.json")]
        return Step(command, seconds)

    load = "from robust_lr.ops import library; print(library.load('cuda'), library.find_or_build('cuda').path)"
    tests = [
        "-m",
        "pytest",
        "tests/ops/test_cuda.py",
        "tests/ops/test_cuda_stem.py",
        "-k",
        "not shim",
        "-rs",
        "--durations=10",
    ]
    found = {"build": Step([sys.executable, "-c", load], 420), "tests": Step([sys.executable, *tests], 480)}
    tool = sanitizer()
    for check in SANITIZED:
        watched = ["--kernel-name", "kns=robust_lr", "--error-exitcode", "1"]
        command = [tool or "compute-sanitizer", "--tool", check, *watched, sys.executable, "benchmarks/exercise.py"]
        # An allocation for each tensor: beyond the end of one is then nothing, and not the next one.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found[check] = Step(command, 300, alone, None if tool else "compute-sanitizer is not installed")
    found["cuda_layers"] = benchmark("cuda_layers", 180)
    found["cuda_graphs"] = benchmark("cuda_graphs", 180)
    found["networks"] = benchmark("networks", 240, "--device", "cuda")
    found["networks_stepwise"] = benchmark(
        "networks_stepwise", 240, "--device", "cuda", "--stepwise-stem", script="networks"
    )
    if authors is not None:
        found["authors_op"] = benchmark("authors_op", 180, "--source", str(authors.resolve()))
    return found


def sanitizer() -> str | None:
    """compute-sanitizer, on the PATH or beside nvcc."""
    located = nvcc.locate()
    beside = str(Path(located[0]).resolve().parent) if located else ""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)


def run(name: str, step: Step, log: Path) -> dict[str, object]:
    """Run a step with its output at the end of the log; one that takes too long is killed with all that it started."""
    if step.skipped:
        return {"state": f"skipped: {step.skipped}"}
    print(f"{name} ...", flush=True)
    environment = os.environ | {"ROBUST_LR_EXTENSION": "require", "PYTHONPATH": python_path()} | step.environment
    start = time.monotonic()
    with open(log, "ab") as output:
        output.write(f"\n== {name}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(step.seconds)
            state = "passed" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = f"failed: took more than {step.seconds} s"
    said = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    print(f"{name}: {state}", *said[-3:], sep="\n  ", flush=True)
    return {
        "state": state,
        "seconds": round(time.monotonic() - start, 1),
        "command": step.command,
        "last words": said[-40:],
    }


def python_path() -> str:
    """Environment in which the steps find robust_lr where it is not installed."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these steps alone")
    parser.add_argument("--authors", type=Path, help="the authors' operator to compare with, see authors_op.py")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    every = steps(out, arguments.authors)
    chosen = arguments.only or list(every)
    if unknown := [name for name in chosen if name not in every]:
        parser.error(f"--only: there is no step {unknown[0]!r}, but {', '.join(every)}")
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch finds no GPU, so nothing was checked", file=sys.stderr)
        return 2

    out.mkdir(parents=True, exist_ok=True)
    summary = out / "summary.json"
    before = json.loads(summary.read_text())["steps"] if summary.exists() else {}
    about = {"device": device_name(torch.device("cuda")), "versions": versions(), "extension": doctor.describe()}
    found: dict[str, dict[str, object]] = {}
    for name in (name for name in every if name in chosen):
        found[name] = run(name, every[name], out / "log.txt")
        write_json(summary, {**about, "steps": before | found})
        if name == "build" and found[name]["state"] != "passed":
            break
    failed = [name for name, step in found.items() if str(step["state"]).startswith("failed")]
    print(f"gpu-check: {', '.join(failed)} failed" if failed else "gpu-check: all passed", f"({summary})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
