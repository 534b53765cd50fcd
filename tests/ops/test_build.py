"""Building and loading the kernels, with an empty cache each time."""

import dataclasses
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from robust_lr.cli import main
from robust_lr.ops import build as extension
from robust_lr.ops import doctor, library, nvcc
from robust_lr.utils.errors import InputError, RunError

ROOT = Path(__file__).parents[2]
COMPILER = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler")

# Every process runs this script, which compares the operator and its gradients with plain PyTorch.
PROGRAM = """
import sys, torch
from robust_lr.ops import library, local_relation as ops, reference
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
print("kernels" if library.load() else "plain", "worst", worst)
assert worst < 3e-6, worst
"""


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no choice of compiler or kernels in the environment, for this process and its children."""
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
    """Eight processes, with a compiler that rejects -march=native, so that it builds the portable path, at -O0."""
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
exec {COMPILER} "$@" -O0 """,
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
    assert doctor.describe()["built"]
    # The build of one compiler must not count as that of another.
    monkeypatch.delenv("CXX")
    assert not doctor.describe()["built"]


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
        library.load()
    result = invoke("build")
    assert result.exit_code == 1
    assert "first line of the compiler out of coffee in line 7" in result.output
    assert not list(empty_cache.rglob("*.so"))


def test_broken_compiler_is_an_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", "echo 'cannot find my own parts' >&2; exit 1"))
    with pytest.raises(RunError, match=r"the C.. compiler .* does not work:\ncannot find my own parts"):
        library.load()
    found = doctor.describe()
    assert found["uses"] == "an error"
    assert "cannot find my own parts" in str(found["why"])
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(RunError, match="CXX names the compiler 'no-such-compiler', which was not found"):
        library.load()


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
        library.load()


def test_off_builds_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "off")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not library.load()
    assert doctor.describe()["uses"] == "plain PyTorch"
    out, err = start(4).communicate()
    assert (out, err) == ("plain worst 0.0\n", "")
    assert not empty_cache.exists()


def test_wrong_mode(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "maybe")
    with pytest.raises(InputError, match="ROBUST_LR_EXTENSION must be unset, off or require, got 'maybe'"):
        library.load()


@needs_compiler
def test_cache_that_cannot_be_written(empty_cache: Path) -> None:
    empty_cache.write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"cannot write the kernels to .*set XDG_CACHE_HOME"):
        library.load()


@needs_compiler
def test_describe(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = doctor.describe()
    assert found["compiler"] == COMPILER
    assert found["torch"] == torch.__version__
    assert str(found["cache"]).startswith(str(empty_cache))
    assert str(found["library"]).startswith(str(empty_cache))
    assert (found["uses"], found["built"]) == ("compiled kernels", False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    nvcc = script(tmp_path / "cuda" / "bin" / "nvcc", "")
    found = doctor.describe()
    assert (found["nvcc"], found["nvcc_found_by"]) == (nvcc, "CUDA_HOME")


@needs_compiler
def test_build_depends_on_sources_and_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = doctor.describe()["library"]
    shutil.copytree(extension.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(extension, "SOURCES", tmp_path / "csrc")
    assert doctor.describe()["library"] == library
    with open(tmp_path / "csrc/cpu/common/vec.h", "a") as file:
        file.write("// changed\n")
    assert doctor.describe()["library"] != library
    monkeypatch.setattr(extension, "SOURCES", ROOT / "csrc")
    monkeypatch.setenv("CXX", f"{COMPILER} -O1")
    assert doctor.describe()["library"] != library


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_doctor_says_what_would_be_used_and_why(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_LR_EXTENSION", "off")
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in invoke("doctor").output.splitlines())
    assert lines["torch"] == torch.__version__
    assert (lines["uses"], lines["why"]) == ("plain PyTorch", "ROBUST_LR_EXTENSION=off")
    assert lines["cache"] == str(empty_cache / "robust-lr")
    assert {"compiler", "ninja", "nvcc", "nvcc version", "gpus", "architectures", "cuda uses", "cuda why"} <= set(lines)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Record the calls of `build`, on what looks like a machine that can build CUDA kernels but has no GPU."""
    calls: list[tuple[str, object]] = []

    def build(device: str, capabilities: object = None) -> Path:
        calls.append((device, capabilities))
        return Path(f"{device}.so")

    def missing(device: str, capabilities: object = None) -> str | None:
        return "no GPU was found" if device == "cuda" and not capabilities else None

    monkeypatch.setattr(extension, "build", build)
    monkeypatch.setattr(extension, "missing", missing)
    return calls


def test_build_makes_what_can_be_made(asked: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("build").output == "CPU kernels: cpu.so\nCUDA kernels: not built, no GPU was found\n"
    assert asked == [("cpu", None)]
    monkeypatch.setattr(extension, "missing", lambda device: None)
    assert invoke("build").output == "CPU kernels: cpu.so\nCUDA kernels: cuda.so\n"
    assert invoke("build", "--no-cuda").output == "CPU kernels: cpu.so\nCUDA kernels: not built\n"


def test_build_for_named_gpus_makes_a_library_for_each(asked: list[tuple[str, object]]) -> None:
    """Each node of a cluster then finds the library for its own GPUs."""
    result = invoke("build", "--arch", "9.0;8.0")
    assert result.output.splitlines()[1:] == ["CUDA kernels for 8.0: cuda.so", "CUDA kernels for 9.0: cuda.so"]
    assert asked == [("cpu", None), ("cuda", [(8, 0)]), ("cuda", [(9, 0)])]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", "Voodoo"), "--arch must name compute capabilities like 8.0 or 9.0, or "),
        (("--arch", ""), "--arch must name compute capabilities like 8.0 or 9.0, or "),
        (("--arch", "9.0", "--no-cuda"), "give only one of them"),
    ],
)
def test_build_refuses_wrong_options(arguments: tuple[str, ...], words: str, asked: list[tuple[str, object]]) -> None:
    result = invoke("build", *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert asked == []


@needs_compiler
def test_cuda_that_was_asked_for_and_cannot_be_built(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(extension, "_compile", lambda plan, folder: shutil.copy(__file__, folder / "made"))
    result = invoke("build", "--cuda")
    assert result.exit_code == 1
    assert re.search(r"robust-lr: PyTorch .* has no CUDA, so the kernels cannot be built", result.output)


@needs_compiler
def test_cuda_library_is_the_same_on_another_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CUDA library that was built on a login node is found on other nodes, unlike a CPU library."""
    toolkit = nvcc.Toolkit("nvcc", "PATH", "13.0", (), ((8, 0), (9, 0)))
    monkeypatch.setattr(nvcc, "find", lambda: toolkit)
    monkeypatch.setattr(nvcc, "static_runtime", lambda toolkit: "libcudart_static.a")
    here = extension.find_compiler()
    assert here is not None

    def libraries() -> list[Path]:
        return [extension.plan_for("cuda", [(9, 0)]).library(), extension.plan_for("cpu").library()]

    first = libraries()
    there = dataclasses.replace(here, native=("-march=other",), macros={"__VERSION__": here.version})
    monkeypatch.setattr(extension, "find_compiler", lambda: there)
    second = libraries()
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert extension.plan_for("cuda", [(8, 0)]).library() != first[0]
