"""The CPU kernels under the address and undefined-behavior sanitizers, in a program without PyTorch."""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "csrc"
DRIVER = Path(__file__).parent / "sanitizers" / "driver.cpp"
FLAGS = ["-std=c++20", "-O0", "-g1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C++ compiler that has the sanitizers."""
    found = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if found is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "empty.cpp").write_text("int main() {}\n")
    probe = run([found, *FLAGS, str(folder / "empty.cpp"), "-o", str(folder / "empty")])
    if probe.returncode != 0 or run([str(folder / "empty")]).returncode != 0:
        pytest.skip(f"{found} has no sanitizers here: {probe.stderr.strip()[-200:]}")
    return found


@pytest.mark.parametrize("vectors", ["native", "portable"])
def test_kernels_touch_only_what_is_theirs(vectors: str, compiler: str, pytestconfig: pytest.Config) -> None:
    flags = [*FLAGS, *(["-march=native"] if vectors == "native" else [])]
    if run([compiler, *flags, "-E", "-x", "c++", os.devnull]).returncode != 0:
        pytest.skip(f"{compiler} does not know this processor")
    sources = [DRIVER, KERNELS / "cpu" / "float.cpp", KERNELS / "cpu" / "stem_float.cpp"]
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    for path in sorted([*KERNELS.glob("*.h"), *KERNELS.glob("cpu/*"), *sources]):
        digest.update(path.read_bytes())
    folder = Path(pytestconfig.cache.mkdir("sanitizers")) / digest.hexdigest()[:16]
    program = folder / "driver"
    if not program.exists():
        folder.mkdir(exist_ok=True)
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", made] for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in pool.map(run, commands):
                assert done.returncode == 0, done.stderr
        linked = run([compiler, *flags, *objects, "-o", f"{program}.part"])
        assert linked.returncode == 0, linked.stderr
        os.replace(f"{program}.part", program)
    done = run([str(program)])
    assert (done.returncode, done.stdout) == (0, "400 problems\n"), done.stderr
