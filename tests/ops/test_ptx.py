"""nvcc's own PTX of the kernels, run on the CPU.

The shim (test_cuda.py) runs what the C++ compiler makes of the kernels. Here it is what nvcc makes of them for
compute_90, with its contractions, approximate exponentials and vector accesses: each access is checked for alignment,
bounds, races and uninitialized memory, and results are compared with those of the shim's kernels.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_sources import SHIM, digest, run_all

from robust_lr.ops import nvcc

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "ptx"))

from translate import translate  # noqa: E402

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


def run(program: Path, *arguments: object) -> dict[str, int]:
    """The instructions that the threads of each kernel executed, by its mangled name."""
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return {name: int(count) for name, count in re.findall(r"(\S+) (\d+)", done.stdout)}


def test_every_kernel_is_right_and_clean(program: Path) -> None:
    counts = run(program, 60)
    assert {name for name in KERNELS for symbol in counts if f"{len(name)}{name}I" in symbol} == KERNELS
    # strips of layers and of the stem, projections, those on tensor cores, and sums in both types
    assert len(counts) == 9 + 3 + 3 + 2
    assert [symbol for symbol, count in counts.items() if count == 0 and "sum_partsId" not in symbol] == []
