"""The CPU kernels under the address and undefined-behavior sanitizers, in a program without PyTorch."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from robust_lr.ops.compiler import Compiler, find_compiler

KERNELS = Path(__file__).parents[2] / "csrc"
DRIVER = Path(__file__).parents[1] / "sanitizers" / "driver.cpp"
FLAGS = ["-std=c++20", "-O0", "-g1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """The compiler of the kernels, if it has the sanitizers."""
    found = find_compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "empty.cpp").write_text("int main() {}\n")
    probe = run([*found.command, *FLAGS, str(folder / "empty.cpp"), "-o", str(folder / "empty")])
    if probe.returncode != 0 or run([str(folder / "empty")]).returncode != 0:
        pytest.skip(f"{found.command} has no sanitizers here: {probe.stderr.strip()[-200:]}")
    return found


@pytest.mark.parametrize("vectors", ["native", "avx2", "portable"])
def test_kernels_touch_only_what_is_theirs(vectors: str, compiler: Compiler, pytestconfig: pytest.Config) -> None:
    if vectors == "native" and not compiler.native:
        pytest.skip(f"{compiler.command} does not know this processor")
    if vectors == "avx2" and compiler.vectors != "AVX-512":
        pytest.skip("the native vectors are those of AVX2, or this processor has none")
    flags = [*FLAGS, *{"native": compiler.native, "avx2": ("-march=x86-64-v3",), "portable": ()}[vectors]]
    compiled = ("local_relation/float.cpp", "stem/float.cpp", "convolution/kernels.cpp")
    sources = [DRIVER, *(KERNELS / "cpu" / name for name in compiled)]
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    for path in sorted([*KERNELS.glob("*.h"), *KERNELS.glob("cpu/**/*.*"), *sources]):
        digest.update(path.read_bytes())
    folder = Path(pytestconfig.cache.mkdir("sanitizers")) / digest.hexdigest()[:16]
    program = folder / "driver"
    if not program.exists():
        folder.mkdir(exist_ok=True)
        objects = [str(folder / f"{source.parent.name}_{source.stem}.o") for source in sources]
        commands = [
            [*compiler.command, *flags, "-c", str(source), "-o", made]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in pool.map(run, commands):
                assert done.returncode == 0, done.stderr
        linked = run([*compiler.command, *flags, *objects, "-o", f"{program}.part"])
        assert linked.returncode == 0, linked.stderr
        os.replace(f"{program}.part", program)
    done = run([str(program)])
    assert (done.returncode, done.stdout) == (0, "400 problems\n"), done.stderr
