"""nvcc's own PTX of the kernels, run on the CPU.

The shim (test_cuda.py) runs what the C++ compiler makes of the kernels. Here it is what nvcc makes of them for
compute_90, with its contractions, approximate exponentials and vector accesses: each access is checked for alignment,
bounds, races and uninitialized memory, and results are compared with those of the shim's kernels.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_sources import SHIM, digest, run_all

from robust_lr.ops import nvcc

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "ptx"), str(TESTS.parent / "benchmarks")]

import cuda_count  # noqa: E402
from sass import kernels  # noqa: E402
from translate import KINDS, translate  # noqa: E402

pytestmark = pytest.mark.slow

KERNELS = {
    "forward_strips", "backward_queries", "backward_keys", "project", "image_gradient", "weights_gradient", "sum_parts",
    "project_products", "image_gradient_products", "weights_gradient_products",
}  # fmt: skip


@pytest.fixture(scope="module")
def program(pytestconfig: pytest.Config) -> Path:
    """The program that runs the PTX, kept under a name that changes with its sources."""
    toolkit, compiler = nvcc.find(), shutil.which("g++")
    if toolkit is None or compiler is None:
        pytest.skip("no nvcc, or no g++")
    cache = Path(pytestconfig.cache.mkdir("ptx"))
    own = [*(TESTS / "ptx").glob("*.*"), *(TESTS / "cuda_checks").iterdir()]
    made = cache / digest(toolkit.version, *(path.read_text() for path in sorted(own)))
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            text, code = cache / "kernels.ptx", cache / "kernels.cpp"
            source = str(TESTS / "ptx" / "kernels.cu")
            run_all([[toolkit.nvcc, *nvcc.FLAGS, "-arch=compute_90", "-ptx", source, "-o", str(text)]])
            os.replace(shutil.copy(text, f"{made}.part"), f"{made}.ptx")
            code.write_text(translate(text.read_text())[0])
            flags = ["-std=c++20", "-w", "-fno-strict-aliasing", f"-I{SHIM}", f"-I{TESTS / 'ptx'}"]
            sources = {code: "-O1", TESTS / "ptx" / "driver.cpp": "-O1", TESTS / "cuda_checks" / "detector.cpp": "-O2"}
            objects = [str(cache / f"{path.stem}.o") for path in sources]
            run_all([
                [compiler, *flags, level, "-c", str(path), "-o", out]
                for (path, level), out in zip(sources.items(), objects, strict=True)
            ])  # fmt: skip
            run_all([[compiler, "-rdynamic", *objects, "-Wl,--wrap=memcpy", "-ldl", "-o", f"{made}.part"]])
            os.replace(f"{made}.part", made)
    return made


def run(program: Path, *arguments: object) -> dict[str, dict[str, int]]:
    """The instructions that the threads of each kernel executed, by its mangled name and their kind."""
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (line.split() for line in done.stdout.splitlines())
    return {name: dict(zip(KINDS, map(int, counts), strict=True)) for name, *counts in lines}


def test_every_kernel_is_right_and_clean(program: Path) -> None:
    counts = run(program, 80)
    assert {name for name in KERNELS for symbol in counts if f"{len(name)}{name}I" in symbol} == KERNELS
    # kernels of strips (of layers and of the stem), projections, projections on tensor cores, and sums in both types
    assert len(counts) == 13 + 3 + 3 + 2
    assert [symbol for symbol, count in counts.items() if not any(count.values()) and "sum_partsId" not in symbol] == []


#: for each kind of PTX instructions, the corresponding machine instructions and the tolerance between their counts: the
#: number of rows that a warp skips is known only on average, and loads from shared memory are split differently
MACHINE = {
    "exponential": (("MUFU.EX2",), 0.07),
    "float": (("FADD", "FFMA"), 0.07),
    "shuffle": (("SHFL",), 0.1),
    "shared": (("LDS", "STS"), 0.75),
}


@pytest.mark.parametrize(("channels", "size", "stride"), [(64, 28, 1), (64, 28, 2)])
def test_counted_instructions_are_those_executed(program: Path, channels: int, size: int, stride: int) -> None:
    """The loops that benchmarks/cuda_count.py finds in the machine code run as often as those of the PTX do."""
    counted = count_machine_code(program, channels, size, stride)
    executed = run(program, "layer", channels, size, stride)
    kernels_of_layer = {cuda_count.short(symbol): kinds for symbol, kinds in executed.items() if any(kinds.values())}
    assert counted.keys() <= kernels_of_layer.keys()
    assert len(counted) == 3
    for name, kinds in counted.items():
        for kind, (_, bound) in MACHINE.items():
            assert kinds[kind] == pytest.approx(kernels_of_layer[name][kind] / 32, rel=bound), (name, kind)


def count_machine_code(program: Path, channels: int, size: int, stride: int) -> dict[str, dict[str, float]]:
    """Instructions by kernel and kind in one layer's training step, over all lanes with work and divided by 32."""
    disassembler, toolkit = cuda_count.disassembler(), nvcc.find()
    assert toolkit is not None
    cubin = program.with_suffix(".cubin")
    if not cubin.exists():
        run_all([[toolkit.nvcc, "-arch=sm_90", "-cubin", f"{program}.ptx", "-o", f"{cubin}.part"]])
        os.replace(f"{cubin}.part", cubin)
    code = {cuda_count.short(name): each for name, each in kernels(run_all([[disassembler, "-c", str(cubin)]])).items()}
    found: dict[str, dict[str, float]] = {}
    for launch in cuda_count.launches(program.parent, 1, size, channels, stride):
        if launch.part == "attack":
            continue
        issued = cuda_count.issued(code[cuda_count.short(launch.kernel)], launch)
        warps = launch.blocks * launch.groups * launch.columns * launch.strips / 32
        found[cuda_count.short(launch.kernel)] = {
            kind: warps * sum(count for name, count in issued.items() if name.startswith(operations))
            for kind, (operations, _) in MACHINE.items()
        }
    return found
