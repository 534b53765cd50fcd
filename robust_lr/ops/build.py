"""Builds the compiled kernels in csrc at their first use, keeps them in the user's cache, and loads them.

The environment decides:

- `ROBUST_LR_EXTENSION`: unset, use the kernels, or warn once and use plain PyTorch where there is no compiler;
  `require`, fail in that case; `off`, use plain PyTorch.
- `CXX`: the C++ compiler, with flags if need be (GCC 10 or Clang 12, or newer); otherwise c++, g++ or clang++.
- `robust_lr/nvcc.py` says what decides over CUDA. Its kernels are a library of their own, built when CUDA tensors first
  need it.
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

from ..utils.errors import InputError, RunError
from . import nvcc

log = logging.getLogger("robust_lr")

Capabilities = list[tuple[int, int]]  # of GPUs, e.g. [(8, 0), (9, 0)]

SOURCES = Path(__file__).parents[1] / "csrc"
FLAGS = ("-O3", "-std=c++20", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden")
PORTABLE = "portable (16 bytes)"
TORCH_TARGET_VERSION = "0x020b000000000000"  # the oldest PyTorch whose stable ABI the sources use: 2.11


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
        return "AVX2" if "__AVX2__" in self.macros else PORTABLE


@dataclass(frozen=True)
class Plan:
    """How to make a library: from the files in some folders of csrc, with a command for each kind of file."""

    name: str
    folders: tuple[str, ...]  # as patterns: "" is the top folder, "cpu/**/" is cpu and all below it
    commands: dict[str, list[str]]
    link: list[str]
    libraries: list[str]
    versions: tuple[str, ...]  # what else the result depends on

    def sources(self) -> list[Path]:
        return sorted(p for folder in self.folders for kind in self.commands for p in SOURCES.glob(f"{folder}*{kind}"))

    def library(self) -> Path:
        """Where the cache has it: a place that changes with the sources, commands, compilers and PyTorch."""
        digest = hashlib.sha256()
        for part in (repr(self.commands), repr(self.link), repr(self.libraries), torch.__version__, *self.versions):
            digest.update(part.encode() + b"\0")
        headers = (path for folder in ("", *self.folders) for path in SOURCES.glob(f"{folder}*.h"))
        for path in sorted({*headers, *self.sources()}):
            digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
        return cache_folder() / f"torch{torch.__version__}-{digest.hexdigest()[:16]}" / f"{self.name}.so"


def load(device: str = "cpu") -> bool:
    """Make the compiled operators available for tensors on "cpu" or "cuda", building them if need be; return whether
    they are.

    Raises:
        RunError: for a compiler that fails, and under `ROBUST_LR_EXTENSION=require` where there is none.
        InputError: for another value of `ROBUST_LR_EXTENSION`.
    """
    mode = chosen_mode()
    if mode == "off" or device not in ("cpu", "cuda"):
        return False
    reason = missing(device)
    if reason is None:
        _load_library(build("cpu"))  # defines the operators
        if device == "cuda":
            _load_library(build("cuda"))
        return True
    if mode == "require":
        raise RunError(f"{reason}, and ROBUST_LR_EXTENSION=require does not allow plain PyTorch instead")
    _warn_once(f"{reason}: using plain PyTorch, which is many times slower (ROBUST_LR_EXTENSION=off hides this)")
    return False


def build(device: str = "cpu", capabilities: Capabilities | None = None) -> Path:
    """Compile the kernels for a device unless the cache has them, and return the library's path.

    Any number of processes may do this at once: one builds and the others wait for it.

    Args:
        device: "cpu" or "cuda".
        capabilities: of the GPUs to compile for, e.g. [(9, 0)]; by default those in TORCH_CUDA_ARCH_LIST, or of the
            GPUs present. A library is found again where it was built for just the GPUs that are there.

    Raises:
        RunError: where there is no compiler, it fails (with its output), or the cache cannot be written.
    """
    reason = missing(device, capabilities)
    if reason is not None:
        raise RunError(f"{reason}, so the kernels cannot be built")
    plan = plan_for(device, capabilities)
    library = plan.library()
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.parent / "lock"):
            if not library.exists():
                log.info("compiling the local relation kernels for %s, once, into %s", device, library.parent)
                with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                    os.replace(_compile(plan, Path(folder)), library)
    except OSError as error:
        raise RunError(f"cannot write the kernels to {library.parent} ({error}); set XDG_CACHE_HOME") from error
    return library


def cache_folder() -> Path:
    """The folder that holds the built kernels."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "robust-lr"


@functools.cache
def _load_library(library: Path) -> None:
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def chosen_mode() -> str:
    """What ROBUST_LR_EXTENSION says: auto, off or require."""
    mode = os.environ.get("ROBUST_LR_EXTENSION", "") or "auto"
    if mode not in ("auto", "off", "require"):
        raise InputError(f"ROBUST_LR_EXTENSION must be unset, off or require, got {mode!r}")
    return mode


def missing(device: str, capabilities: Capabilities | None = None) -> str | None:
    """Why the kernels for a device cannot be built here, or None."""
    if sys.platform == "win32":
        return "the kernels cannot be built on Windows yet"
    if find_compiler() is None:
        return "no C++ compiler was found (c++, g++ or clang++, or name one in CXX)"
    if not find_ninja():
        return "ninja was not found (pip install ninja)"
    if device == "cpu":
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} has no CUDA"
    toolkit = nvcc.find()
    if toolkit is None:
        return "no CUDA compiler was found (nvcc on the PATH, or name its toolkit in CUDA_HOME)"
    if capabilities is None and (reason := nvcc.newer_than_driver(toolkit)):
        return reason
    if not (capabilities or nvcc.wanted_capabilities()):
        return "no GPU was found (name what to compile for in TORCH_CUDA_ARCH_LIST, e.g. 9.0)"
    return None


def find_compiler() -> Compiler | None:
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


def plan_for(device: str, capabilities: Capabilities | None = None) -> Plan:
    """How the kernels for a device are made, where nothing is `missing`."""
    compiler = find_compiler()
    assert compiler is not None
    torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-I{_torch_folder() / 'include'}"]
    cpp = [*compiler.command, *FLAGS, *torch_flags]
    link = [*compiler.command, "-shared"]
    libraries = [f"-L{_torch_folder() / 'lib'}", "-ltorch_cpu", "-lc10"]
    if device == "cpu":
        native = {".cpp": [*cpp, *compiler.native]}
        return Plan("robust_lr", ("", "cpu/**/"), native, link, libraries, (repr(sorted(compiler.macros.items())),))
    # Nothing of this machine's processor: it may be built where there is no GPU, for machines of another kind.
    toolkit = nvcc.find()
    assert toolkit is not None
    architectures = nvcc.architecture_flags(toolkit, capabilities or nvcc.wanted_capabilities())
    cuda = [toolkit.nvcc, *nvcc.FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", *architectures]
    libraries += ["-ltorch_cuda", nvcc.static_runtime(toolkit), "-ldl", "-lrt", "-lpthread"]
    versions = (compiler.version, toolkit.version)
    return Plan("robust_lr_cuda", ("cuda/**/",), {".cpp": cpp, ".cu": cuda}, link, libraries, versions)


def _compile(plan: Plan, folder: Path) -> Path:
    """Run ninja in `folder` and return the library's path there."""
    kinds = {kind: f"compile_{kind[1:]}" for kind in plan.commands}
    objects = {f"{'_'.join(path.relative_to(SOURCES).parts)}.o": path for path in plan.sources()}
    lines = []
    for kind, command in plan.commands.items():
        lines += [f"rule {kinds[kind]}", f"  command = {_ninja_quoted(command)} -c $in -o $out"]
    lines += [
        "rule link",
        f"  command = {_ninja_quoted(plan.link)} -o $out $in {_ninja_quoted(plan.libraries)}",
        *(f"build {name}: {kinds[path.suffix]} {_ninja_path(path)}" for name, path in objects.items()),
        f"build {plan.name}.so: link {' '.join(objects)}",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = find_ninja()
    assert ninja is not None
    answer = _run([ninja, "-C", str(folder), f"{plan.name}.so"])
    if answer.returncode != 0:
        raise RunError(f"compiling the kernels failed:\n{answer.stdout}{answer.stderr}".rstrip())
    return folder / f"{plan.name}.so"


def _ninja_quoted(words: list[str] | tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return "".join("$" + c if c in "$ :" else c for c in str(path.resolve()))


def _torch_folder() -> Path:
    return Path(torch.__file__).parent


def find_ninja() -> str | None:
    """Ninja of the ninja package, which need not be on the PATH, or else of the system."""
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it goes with the process, also if that is killed."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
