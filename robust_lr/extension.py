"""Builds the compiled kernels in csrc at their first use, keeps them in the user's cache, and loads them.

The environment decides:

- `ROBUST_LR_EXTENSION`: unset, use the kernels, or warn once and use plain PyTorch where there is no compiler;
  `require`, fail in that case; `off`, use plain PyTorch.
- `CXX`: the C++ compiler, with flags if need be (GCC 10 or Clang 12, or newer); otherwise c++, g++ or clang++.
- `XDG_CACHE_HOME`: where the cache lies, `~/.cache` by default.

A compiler that fails is an error with its own words, never a silent fall-back.
"""

import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import InputError, RunError

log = logging.getLogger("robust_lr")

SOURCES = Path(__file__).parent / "csrc"
# The oldest PyTorch whose stable ABI the sources use: 2.11.
FLAGS = ("-O3", "-std=c++20", "-ffp-contract=fast", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that works: its command, the flags for this machine, and its predefined macros."""

    command: tuple[str, ...]
    native: tuple[str, ...]
    macros: dict[str, str]

    @property
    def version(self) -> str:
        """The version in the compiler's words, e.g. "12.2.0"."""
        return self.macros.get("__VERSION__", "unknown").strip('"')

    @property
    def vectors(self) -> str:
        """The widest vectors that the kernels will use."""
        if "__AVX512F__" in self.macros:
            return "AVX-512"
        return "AVX2" if "__AVX2__" in self.macros else "portable (16 bytes)"


def load() -> bool:
    """Make the compiled operators available, building them if need be; return whether they are.

    Raises:
        RunError: for a compiler that fails, and under `ROBUST_LR_EXTENSION=require` where there is none.
        InputError: for another value of `ROBUST_LR_EXTENSION`.
    """
    mode = _mode()
    if mode == "off":
        return False
    missing = _missing()
    if missing is None:
        _load_library(build())
        return True
    if mode == "require":
        raise RunError(f"{missing}, and ROBUST_LR_EXTENSION=require does not allow plain PyTorch instead")
    _warn_once(f"{missing}: using plain PyTorch, which is many times slower (ROBUST_LR_EXTENSION=off hides this)")
    return False


def build() -> Path:
    """Compile the kernels unless the cache has them, and return the library's path.

    Any number of processes may do this at once: one builds and the others wait for it.

    Raises:
        RunError: where there is no compiler, it fails (with its output), or the cache cannot be written.
    """
    missing = _missing()
    if missing is not None:
        raise RunError(f"{missing}, so the kernels cannot be built")
    compiler = _compiler()
    assert compiler is not None
    library = cache_folder() / _key(compiler) / "robust_lr.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.parent / "lock"):
            if not library.exists():
                log.info("compiling the local relation kernels, once, into %s", library.parent)
                with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                    os.replace(_compile(compiler, Path(folder)), library)
    except OSError as error:
        raise RunError(f"cannot write the kernels to {library.parent} ({error}); set XDG_CACHE_HOME") from error
    return library


def cache_folder() -> Path:
    """The folder that holds the built kernels."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "robust-lr"


def describe() -> dict[str, object]:
    """What was found, and what would be used and why, without building anything (for `robust-lr doctor`)."""
    compiler, failure = None, None
    try:
        compiler = _compiler()
    except RunError as error:
        failure = str(error)
    mode = _mode()
    missing = None if failure else _missing()
    library = cache_folder() / _key(compiler) / "robust_lr.so" if compiler else None
    built = library is not None and library.exists()
    if mode == "off":
        uses, why = "plain PyTorch", "ROBUST_LR_EXTENSION=off"
    elif failure:
        uses, why = "an error", failure
    elif missing:
        uses, why = ("an error" if mode == "require" else "plain PyTorch"), missing
    else:
        uses, why = "compiled kernels", "built" if built else "will be built at first use"
    nvcc, nvcc_from = _find_nvcc()
    return {
        "mode": mode,
        "compiler": shlex.join(compiler.command) if compiler else None,
        "compiler_version": compiler.version if compiler else None,
        "vectors": compiler.vectors if compiler else None,
        "ninja": _find_ninja(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc,
        "nvcc_found_by": nvcc_from,
        "cuda_devices": [
            f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
            for i in range(torch.cuda.device_count())
        ],
        "cache": str(cache_folder()),
        "library": str(library) if library else None,
        "built": built,
        "uses": uses,
        "why": why,
    }


@functools.cache
def _load_library(library: Path) -> None:
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _mode() -> str:
    mode = os.environ.get("ROBUST_LR_EXTENSION", "") or "auto"
    if mode not in ("auto", "off", "require"):
        raise InputError(f"ROBUST_LR_EXTENSION must be unset, off or require, got {mode!r}")
    return mode


def _missing() -> str | None:
    """Why nothing can be built here, or None."""
    if sys.platform == "win32":
        return "the kernels cannot be built on Windows yet"
    if _compiler() is None:
        return "no C++ compiler was found (c++, g++ or clang++, or name one in CXX)"
    return None if _find_ninja() else "ninja was not found (pip install ninja)"


def _compiler() -> Compiler | None:
    """The compiler to use, checked to run; None where there is none."""
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise RunError(f"CXX names the compiler {command[0]!r}, which was not found")
        return _probe(tuple(command))
    found = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    return _probe((found,)) if found else None


@functools.cache
def _probe(command: tuple[str, ...]) -> Compiler:
    """Ask a compiler for its predefined macros, which also tell the processor that it compiles for."""
    for native in (("-march=native",), ()):
        answer = _run([*command, *native, "-dM", "-E", "-x", "c++", os.devnull])
        if answer.returncode == 0:
            lines = (line.split(maxsplit=2) for line in answer.stdout.splitlines() if line.startswith("#define"))
            return Compiler(command, native, {name: "".join(value) for _, name, *value in lines})
    raise RunError(f"the C++ compiler {shlex.join(command)} does not work:\n{answer.stdout}{answer.stderr}".rstrip())


def _key(compiler: Compiler) -> str:
    """A name for one build: it changes with the sources, flags, compiler, processor and PyTorch."""
    digest = hashlib.sha256()
    for part in (*compiler.command, *_flags(compiler), torch.__version__, repr(sorted(compiler.macros.items()))):
        digest.update(part.encode() + b"\0")
    for path in _sources("*.h", "*.cpp"):
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
    return f"torch{torch.__version__}-{digest.hexdigest()[:16]}"


def _sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for folder in (".", "cpu") for path in (SOURCES / folder).glob(pattern))


def _flags(compiler: Compiler) -> list[str]:
    return [*FLAGS, *compiler.native, f"-I{_torch_folder() / 'include'}"]


def _compile(compiler: Compiler, folder: Path) -> Path:
    """Run ninja in `folder` and return the library's path there."""
    objects = {f"{path.parent.name}_{path.stem}.o": path for path in _sources("*.cpp")}
    link = ["-shared", f"-L{_torch_folder() / 'lib'}", "-ltorch_cpu", "-lc10"]
    lines = [
        "rule compile",
        f"  command = {_ninja_quoted([*compiler.command, *_flags(compiler)])} -c $in -o $out",
        "rule link",
        f"  command = {_ninja_quoted(compiler.command)} $in {_ninja_quoted(link)} -o $out",
        *(f"build {name}: compile {_ninja_path(path)}" for name, path in objects.items()),
        f"build robust_lr.so: link {' '.join(objects)}",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = _find_ninja()
    assert ninja is not None
    answer = _run([ninja, "-C", str(folder), "robust_lr.so"])
    if answer.returncode != 0:
        raise RunError(f"compiling the kernels failed:\n{answer.stdout}{answer.stderr}".rstrip())
    return folder / "robust_lr.so"


def _ninja_quoted(words: list[str] | tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return "".join("$" + c if c in "$ :" else c for c in str(path.resolve()))


def _torch_folder() -> Path:
    return Path(torch.__file__).parent


def _find_ninja() -> str | None:
    """Ninja of the ninja package, which need not be on the PATH, or else of the system."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def _find_nvcc() -> tuple[str | None, str | None]:
    """The CUDA compiler, and what led to it."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        nvcc = Path(os.environ.get(variable, "")) / "bin" / "nvcc"
        if os.environ.get(variable) and nvcc.exists():
            return str(nvcc), variable
    if found := shutil.which("nvcc"):
        return found, "PATH"
    usual = Path("/usr/local/cuda/bin/nvcc")
    return (str(usual), "the usual place") if usual.exists() else (None, None)


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it goes with the process, also if that is killed."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
