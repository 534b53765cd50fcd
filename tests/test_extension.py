"""Building and loading the kernels, each time in processes of their own with an empty cache."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robust_lr import extension

ROOT = Path(__file__).parents[1]
COMPILER = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler")

# What every process does: the operator, both ways, next to plain PyTorch.
PROGRAM = """
import sys, torch
from robust_lr import extension, ops, reference
torch.manual_seed(0)
worst = 0.0
cases = (
    ((2, 12, 6, 5), 2, 3, {"normalization": "none"}), ((5, 37, 4, 4), 5, 5, {"border": "zero"}),
    ((2, 8, 16, 16), 2, 3, {"channels_per_group": 4, "composability": "product"}), ((3, 20, 9, 17), 3, 7, {}),
)
for shape, groups, kernel, options in cases[: int(sys.argv[1])]:
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x, q, k = (torch.randn(shape[0], c, *shape[2:], dtype=dtype).to(memory_format=layout).requires_grad_()
                       for c in (shape[1], groups, groups))
            geo = torch.randn(groups, kernel, kernel).requires_grad_()
            inputs = (x, q, k, geo)
            y, wanted = (f(*inputs, **options) for f in (ops.local_relation, reference.local_relation))
            pairs = [(y, wanted), *zip(*(torch.autograd.grad(r.float().sum(), inputs) for r in (y, wanted)))]
            for a, b in pairs:
                error = (a - b).detach().double().norm() / max(b.detach().double().norm(), 1.0)
                worst = max(worst, error.item() * (1e-4 if dtype == torch.bfloat16 else 1.0))
print("kernels" if extension.load() else "plain", "worst", worst)
assert worst < 3e-6, worst
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a process with an empty cache."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "ROBUST_LR_EXTENSION")}
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(program: str, environment: dict[str, str], cases: int = 1) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, str(cases)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(program: str, environment: dict[str, str]) -> tuple[int, str, str]:
    """The exit code, output and error output of a program."""
    process = start(program, environment)
    out, err = process.communicate()
    return process.returncode, out, err


def script(path: Path, text: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_processes_that_start_at_once_build_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Eight of them, with a compiler that does not know -march=native and so builds the portable path, at -O1."""
    log = tmp_path / "log"
    environment["CXX"] = script(
        tmp_path / "compiler",
        f"""
for argument; do
  case $argument in
    -march=native) echo "unknown argument -march=native" >&2; exit 1 ;;
    *.cpp) echo "$argument" >>{log} ;;
  esac
done
exec {COMPILER} "$@" -O1 """,
    )
    processes = [start(PROGRAM, environment, cases) for cases in (4, 1, 1, 1, 1, 1, 1, 1)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.startswith("kernels")
    compiled = log.read_text().split()
    assert len(compiled) == len(set(compiled)) > 2
    folder = tmp_path / "cache" / "robust-lr"
    assert {path.name for path in folder.glob("*/*")} == {"robust_lr.so", "lock"}
    # Another compiler, other flags: another build, which must not take this one for its own.
    del environment["CXX"]
    code, out, _ = run("from robust_lr import extension; print(extension.describe()['built'])", environment)
    assert (code, out) == (0, "False\n")


@needs_compiler
def test_compile_error_is_shown_whole(environment: dict[str, str], tmp_path: Path) -> None:
    environment["CXX"] = script(
        tmp_path / "compiler",
        f"""
case "$*" in
  *-dM*) exec {COMPILER} "$@" ;;
esac
echo "first line of the compiler" >&2
echo "out of coffee in line 7" >&2
exit 3""",
    )
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "RunError: compiling the kernels failed" in err
    assert "first line of the compiler\nout of coffee in line 7" in err
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_broken_compiler_is_an_error(environment: dict[str, str], tmp_path: Path) -> None:
    environment["CXX"] = script(tmp_path / "compiler", "echo 'cannot find my own parts' >&2; exit 1")
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "does not work" in err
    assert "cannot find my own parts" in err
    program = "from robust_lr import extension as e; d = e.describe(); print(d['uses'], '|', d['why'], d['built'])"
    code, out, _ = run(program, environment)
    assert code == 0
    assert out.startswith("an error | ")
    assert "cannot find my own parts" in out
    environment["CXX"] = "no-such-compiler -O2"
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "CXX names the compiler 'no-such-compiler', which was not found" in err


def test_no_compiler_warns_once(environment: dict[str, str], tmp_path: Path) -> None:
    environment["PATH"] = str(tmp_path)
    code, out, err = run(PROGRAM, environment)
    assert (code, out) == (0, "plain worst 0.0\n")
    assert err.count("no C++ compiler was found") == 1
    assert "RuntimeWarning" in err
    environment["ROBUST_LR_EXTENSION"] = "require"
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "RunError: no C++ compiler was found" in err
    code, _, err = run("from robust_lr import extension; extension.build()", environment)
    assert code == 1
    assert "RunError: no C++ compiler was found" in err


def test_off_builds_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    environment["ROBUST_LR_EXTENSION"] = "off"
    environment["CXX"] = "no-such-compiler"
    assert run(PROGRAM, environment) == (0, "plain worst 0.0\n", "")
    assert not (tmp_path / "cache").exists()


def test_wrong_mode(environment: dict[str, str]) -> None:
    environment["ROBUST_LR_EXTENSION"] = "maybe"
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "InputError: ROBUST_LR_EXTENSION must be unset, off or require, got 'maybe'" in err


@needs_compiler
def test_cache_that_cannot_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    code, _, err = run(PROGRAM, environment)
    assert code == 1
    assert "RunError: cannot write the kernels to" in err
    assert "set XDG_CACHE_HOME" in err


@needs_compiler
def test_describe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("ROBUST_LR_EXTENSION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = extension.describe()
    assert found["compiler"] == COMPILER
    assert found["torch"] == torch.__version__
    assert str(found["cache"]).startswith(str(tmp_path))
    assert str(found["library"]).startswith(str(tmp_path))
    assert (found["uses"], found["built"]) == ("compiled kernels", False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    nvcc = script(tmp_path / "cuda" / "bin" / "nvcc", "")
    found = extension.describe()
    assert (found["nvcc"], found["nvcc_found_by"]) == (nvcc, "CUDA_HOME")


@needs_compiler
def test_build_depends_on_sources_and_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = extension.describe()["library"]
    shutil.copytree(extension.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(extension, "SOURCES", tmp_path / "csrc")
    assert extension.describe()["library"] == library
    with open(tmp_path / "csrc" / "cpu" / "vec.h", "a") as file:
        file.write("// changed\n")
    assert extension.describe()["library"] != library
    monkeypatch.setattr(extension, "SOURCES", ROOT / "csrc")
    monkeypatch.setenv("CXX", f"{COMPILER} -O1")
    assert extension.describe()["library"] != library
