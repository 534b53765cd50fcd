"""Compiles the CUDA sources, with nvcc or as C++ that the shim runs on the CPU."""

import fcntl
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
SHIM = Path(__file__).parent / "cuda_shim"


def digest(*parts: str) -> str:
    """A name for what is made of the CUDA sources and `parts`."""
    found = hashlib.sha256("\0".join(parts).encode())
    for path in sorted([*SOURCES.parent.glob("*.h"), *SOURCES.rglob("*.*"), *SHIM.iterdir()]):
        found.update(str(path.relative_to(SOURCES.parents[1])).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def run_all(commands: list[list[str]]) -> str:
    """Run commands, one a processor at a time, and return what they printed; fail with the first that fails."""

    def run(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(run, commands))


def build_shim(compiler: str, cache: Path) -> Path:
    """The library that has the CUDA operators for CPU tensors, as torch.ops.robust_lr_shim; kept in `cache`."""
    folder = cache / digest(torch.__version__)
    library = folder / "shim.so"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several processes run the tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_shim(compiler, folder, library)
    return library


def compile_shim(compiler: str, folder: Path, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    flags = ["-O1", "-std=c++20", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{SHIM}", f"-I{torch_folder / 'include'}"]
    cpp = [path for path in SOURCES.rglob("*.cpp") if path.name != "bindings.cpp"]
    sources = [*sorted(SOURCES.rglob("*.cu")), *sorted(cpp), SHIM / "shim.cpp", SHIM / "bindings.cpp"]
    objects = [str(folder / f"{source.parent.name}_{source.name}.o") for source in sources]
    run_all([
        [compiler, *flags, "-x", "c++", "-c", str(source), "-o", made]
        for source, made in zip(sources, objects, strict=True)
    ])  # fmt: skip
    link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    run_all([[compiler, "-shared", *objects, *link, "-o", f"{library}.part"]])
    os.replace(f"{library}.part", library)
