"""Everything that a GPU can say about the CUDA kernels, in one command: `make gpu-check`.

Builds them, runs their tests, runs all of them under compute-sanitizer (memcheck and racecheck, where it is installed),
times layers, whole networks and evaluations, also against the authors' operator where --authors names it (make
gpu-check AUTHORS=PATH), and writes what each step said, and summary.json, into a folder. Exits with 1 where a step
fails, and with 2 where there is no GPU.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from robust_lr import doctor, nvcc, ops
from robust_lr.provenance import device_name, versions
from robust_lr.reference import Border

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"ROBUST_LR_EXTENSION": "require"}


def exercise() -> None:
    """Run every kernel once on small images, for compute-sanitizer to watch."""
    kinds = itertools.product(
        (torch.float32, torch.float16, torch.bfloat16, torch.float64),
        (3, 5, 7, 9, 11),
        (1, 2, 3),
        ("squared_difference", "absolute_difference", "product"),
        ("softmax", "none"),
    )
    for dtype, size, stride, composability, normalization in kinds:
        layouts: tuple[tuple[Border, torch.memory_format], ...]
        layouts = ("mask", torch.channels_last), ("zero", torch.contiguous_format)
        for border, layout in layouts:
            x, q, k = (
                torch.randn(2, c, -(-13 // s), -(-17 // s), device="cuda")
                .to(dtype)
                .contiguous(memory_format=layout)
                .requires_grad_()
                for c, s in ((20, 1), (3, stride), (3, 1))
            )
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            geo = torch.randn(3, size, size, device="cuda", dtype=wide, requires_grad=True)
            options: dict[str, Any] = {"composability": composability, "normalization": normalization}
            y = ops.local_relation(x, q, k, geo, stride=stride, border=border, **options)
            torch.autograd.grad(y.sum(), [x, q, k, geo])
    torch.cuda.synchronize()


def run(name: str, command: list[str], out: Path) -> dict[str, object]:
    """Run a step with its output in a file."""
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    with open(out / f"{name}.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=ROOT, check=False)
    state = "passed" if code.returncode == 0 else f"failed with exit code {code.returncode}"
    print(f"{name}: {state}, see {out / f'{name}.log'}", flush=True)
    return {"state": state, "seconds": round(time.monotonic() - start, 1), "command": command}


def sanitizer() -> str | None:
    """compute-sanitizer, on the PATH or beside nvcc."""
    located = nvcc.locate()
    beside = str(Path(located[0]).resolve().parent) if located else ""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)


def later_steps(out: Path, authors: Path | None) -> dict[str, list[str]]:
    """The commands that follow the build, by name; an empty one where compute-sanitizer is missing."""
    tests = ["-m", "pytest", "tests/test_cuda.py", "-v", f"--junitxml={out / 'tests.xml'}"]
    commands = {"tests": [sys.executable, *tests]}
    tool = sanitizer()
    for check in ("memcheck", "racecheck"):
        exercise = [sys.executable, str(Path(__file__).resolve()), "--exercise"]
        commands[check] = [tool, "--tool", check, "--error-exitcode", "1", *exercise] if tool else []
    for name in ("cuda_layers", "networks", "evaluation"):
        device = [] if name == "cuda_layers" else ["--device", "cuda"]
        commands[name] = [sys.executable, f"benchmarks/{name}.py", *device, "--out", str(out / f"{name}.json")]
    if authors is not None:
        compare = [
            "benchmarks/authors_op.py",
            "--source",
            str(authors.resolve()),
            "--out",
            str(out / "authors_op.json"),
        ]
        commands["authors_op"] = [sys.executable, *compare]
    return commands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check")
    parser.add_argument("--exercise", action="store_true", help="only run every kernel once")
    parser.add_argument("--authors", type=Path, help="the authors' operator to compare with, see authors_op.py")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch finds no GPU, so nothing was checked", file=sys.stderr)
        return 2
    if arguments.exercise:
        exercise()
        return 0

    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps: dict[str, dict[str, object]] = {}
    build = "from robust_lr import extension; print(extension.load('cuda'), extension.build('cuda'))"
    steps["build"] = run("build", [sys.executable, "-c", build], out)
    if steps["build"]["state"] == "passed":
        for name, command in later_steps(out, arguments.authors).items():
            steps[name] = (
                run(name, command, out) if command else {"state": "skipped: compute-sanitizer is not installed"}
            )
    summary = {
        "device": device_name(torch.device("cuda")),
        "versions": versions(),
        "extension": doctor.describe(),
        "steps": steps,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    failed = [name for name, step in steps.items() if str(step["state"]).startswith("failed")]
    print(f"gpu-check: {', '.join(failed)} failed" if failed else "gpu-check: all passed", f"({out / 'summary.json'})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
