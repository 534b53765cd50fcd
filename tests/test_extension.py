"""Building and loading the kernels, with an empty cache each time."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robust_lr import extension
from robust_lr.errors import InputError, RunError

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
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No choices in the environment, for this process and those it starts, and a cache with nothing in it."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("ROBUST_LR_EXTENSION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "cache"


def start(cases: int) -> "subprocess.Popen[str]":
    """Run the program with some of its cases in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(cases)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def script(path: Path, text: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_processes_that_start_at_once_build_once(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Eight of them, with a compiler that does not know -march=native and so builds the portable path, at -O1."""
    log = tmp_path / "log"
    compiler = script(
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
    monkeypatch.setenv("CXX", compiler)
    processes = [start(cases) for cases in (4, 1, 1, 1, 1, 1, 1, 1)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.startswith("kernels")
    compiled = log.read_text().split()
    assert len(compiled) == len(set(compiled)) > 2
    assert {path.name for path in empty_cache.glob("robust-lr/*/*")} == {"robust_lr.so", "lock"}
    assert extension.describe()["built"]
    # Another compiler makes another build, which must not take this one for its own.
    monkeypatch.delenv("CXX")
    assert not extension.describe()["built"]


@needs_compiler
def test_compile_error_is_shown_whole(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = script(
        tmp_path / "compiler",
        f"""
case "$*" in
  *-dM*) exec {COMPILER} "$@" ;;
esac
echo "first line of the compiler" >&2
echo "out of coffee in line 7" >&2
exit 3""",
    )
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(
        RunError, match=r"compiling the kernels failed:\n(.*\n)*first line of the compiler\nout of coffee"
    ):
        extension.load()
    assert not list(empty_cache.rglob("*.so"))


def test_broken_compiler_is_an_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", "echo 'cannot find my own parts' >&2; exit 1"))
    with pytest.raises(RunError, match=r"the C.. compiler .* does not work:\ncannot find my own parts"):
        extension.load()
    found = extension.describe()
    assert found["uses"] == "an error"
    assert "cannot find my own parts" in str(found["why"])
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(RunError, match="CXX names the compiler 'no-such-compiler', which was not found"):
        extension.load()


def test_no_compiler_warns_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out, err = start(4).communicate()
    assert out == "plain worst 0.0\n"
    assert err.count("no C++ compiler was found") == 1
    assert "RuntimeWarning" in err
    assert not empty_cache.exists()
    with pytest.raises(RunError, match=r"no C.. compiler was found"):
        extension.build()
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "require")
    with pytest.raises(RunError, match=r"no C.. compiler was found .*ROBUST_LR_EXTENSION=require does not allow"):
        extension.load()


def test_off_builds_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "off")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not extension.load()
    assert extension.describe()["uses"] == "plain PyTorch"
    out, err = start(4).communicate()
    assert (out, err) == ("plain worst 0.0\n", "")
    assert not empty_cache.exists()


def test_wrong_mode(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "maybe")
    with pytest.raises(InputError, match="ROBUST_LR_EXTENSION must be unset, off or require, got 'maybe'"):
        extension.load()


@needs_compiler
def test_cache_that_cannot_be_written(empty_cache: Path) -> None:
    empty_cache.write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"cannot write the kernels to .*set XDG_CACHE_HOME"):
        extension.load()


@needs_compiler
def test_describe(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = extension.describe()
    assert found["compiler"] == COMPILER
    assert found["torch"] == torch.__version__
    assert str(found["cache"]).startswith(str(empty_cache))
    assert str(found["library"]).startswith(str(empty_cache))
    assert (found["uses"], found["built"]) == ("compiled kernels", False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    nvcc = script(tmp_path / "cuda" / "bin" / "nvcc", "")
    found = extension.describe()
    assert (found["nvcc"], found["nvcc_found_by"]) == (nvcc, "CUDA_HOME")


@needs_compiler
def test_build_depends_on_sources_and_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
