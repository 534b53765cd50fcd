"""The CUDA kernels under a detector of races, of accesses out of bounds and of reads of uninitialized memory.

The kernels run on the CPU (tests/cuda_checks), in a program without PyTorch, on random problems. A detector's silence
proves nothing unless it reports what is wrong: each barrier of the kernels is left out in turn.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_sources import SHIM, SOURCES, run_all

CHECKS = Path(__file__).parents[1] / "cuda_checks"
FLAGS = ["-std=c++20", "-g1", "-w", "-fno-strict-aliasing", f"-I{SHIM}"]
# Device functions are inlined because the instrumentation misses how a call writes its result to the destination.
KERNEL_FLAGS = ["-O1", "-fsanitize=thread", "-D__device__=__attribute__((always_inline))"]
UNDEFINED_FLAGS = ["-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.slow


def build(folder: Path, kernel_flags: list[str], link_flags: list[str]) -> Path:
    """The program, kept in `folder` under a name that changes with its sources."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the detector with")
    found = hashlib.sha256(repr((FLAGS, kernel_flags)).encode())
    for path in sorted(p for top in (SOURCES.parent, SHIM, CHECKS) for p in top.rglob("*.*")):
        found.update(path.read_bytes())
    program = folder / found.hexdigest()[:16]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            driver, detector = (str(folder / f"{program.name}-{name}.o") for name in ("driver", "detector"))
            run_all([
                [compiler, *FLAGS, *kernel_flags, "-c", str(CHECKS / "driver.cpp"), "-o", driver],
                [compiler, *FLAGS, "-O2", "-c", str(CHECKS / "detector.cpp"), "-o", detector],
            ])  # fmt: skip
            run_all([[compiler, driver, detector, "-Wl,--wrap=memcpy", *link_flags, "-o", f"{program}.part"]])
            os.replace(f"{program}.part", program)
    return program


@pytest.fixture(scope="module")
def program(pytestconfig):
    return build(Path(pytestconfig.cache.mkdir("cuda_checks")), KERNEL_FLAGS, [])


def run(program: Path, problems: int, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [str(program), str(problems)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def barriers() -> set[str]:
    """FILE:LINE of every barrier of the kernels."""
    return {
        f"{path.name}:{number}"
        for path in SOURCES.rglob("*.*")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "__syncthreads();" in line
    }


def test_the_kernels_are_clean_and_every_barrier_is_reached(program):
    done = run(program, 600)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "600 problems"
    assert set(re.findall(r"barrier (\S+)", done.stdout)) == barriers()


@pytest.mark.parametrize("barrier", sorted(barriers()))
def test_a_barrier_left_out_is_reported(program, barrier):
    done = run(program, 120, DETECTOR_SKIP=barrier)
    assert done.returncode == 1
    assert re.search(r"race with a (read|write) in shared memory|read of uninitialized shared memory", done.stderr)


def test_nothing_undefined_is_done(pytestconfig):
    program = build(Path(pytestconfig.cache.mkdir("cuda_checks")), UNDEFINED_FLAGS, ["-lubsan"])
    done = run(program, 150)
    assert (done.returncode, done.stderr) == (0, "")
