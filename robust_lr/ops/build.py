"""Compile the kernels in csrc and keep them in the user's cache.

Environment variables:

- `CXX`: the C++ compiler (see compiler.py).
- `robust_lr/ops/nvcc.py` lists the variables for CUDA, whose kernels are a library of their own, built when CUDA
  tensors first need it.
- `XDG_CACHE_HOME`: the folder of the cache, `~/.cache` by default.
"""

import hashlib
import logging
import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.errors import RunError
from . import nvcc
from .compiler import find_compiler, find_ninja, run

log = logging.getLogger("robust_lr")

Capabilities = list[tuple[int, int]]  # of GPUs, e.g. [(8, 0), (9, 0)]

SOURCES = Path(__file__).parents[1] / "csrc"
FLAGS = ("-O3", "-std=c++20", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden")
TORCH_TARGET_VERSION = "0x020b000000000000"  # the oldest PyTorch whose stable ABI the sources use: 2.11


@dataclass(frozen=True)
class Plan:
    """Instructions to build a library: folders of csrc, and a command for each kind of file."""

    name: str
    folders: tuple[str, ...]  # as patterns: "" is the top folder, "cpu/**/" is cpu and all below it
    commands: dict[str, list[str]]
    link: list[str]
    libraries: list[str]
    versions: tuple[str, ...]  # of compilers and of what else the result depends on

    def sources(self) -> list[Path]:
        return sorted(p for folder in self.folders for kind in self.commands for p in SOURCES.glob(f"{folder}*{kind}"))

    def library(self) -> Path:
        """Return the library's path in the cache, which changes with the sources, commands and compilers.

        The stable ABI makes it one library for every PyTorch, wherever that is installed.
        """
        digest = hashlib.sha256()
        for part in (repr(self.commands), repr(self.link), repr(self.libraries), *self.versions):
            digest.update(part.replace(str(_torch_folder()), "torch").encode() + b"\0")
        headers = (path for folder in ("", *self.folders) for path in SOURCES.glob(f"{folder}*.h"))
        for path in sorted({*headers, *self.sources()}):
            digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
        return cache_folder() / digest.hexdigest()[:16] / f"{self.name}.so"


def build(device: str = "cpu", capabilities: Capabilities | None = None) -> Path:
    """Compile the kernels for a device unless the cache has them, and return the library's path.

    Any number of processes may do this at once: one builds and the others wait for it.

    Args:
        device: "cpu" or "cuda".
        capabilities: compute capabilities to compile for, e.g. [(9, 0)]; by default those in TORCH_CUDA_ARCH_LIST, or
            of the GPUs present. A library is found again if it was built for exactly the GPUs that are present.

    Raises:
        RunError: there is no compiler, it fails (with its output), or the cache cannot be written.
    """
    reason = missing(device, capabilities)
    if reason is not None:
        raise RunError(f"{reason}, so the kernels cannot be built")
    return build_plan(plan_for(device, capabilities))


def build_plan(plan: Plan) -> Path:
    """Compile a library unless the cache has it, and return its path.

    Raises:
        RunError: the compiler fails (with its output), or the cache cannot be written.
    """
    library = plan.library()
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(library.parent / "lock"):
            if not library.exists():
                log.info("compiling %s, once, into %s", library.name, library.parent)
                with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                    os.replace(_compile(plan, Path(folder)), library)
    except OSError as error:
        raise RunError(f"cannot write the kernels to {library.parent} ({error}); set XDG_CACHE_HOME") from error
    return library


def cache_folder() -> Path:
    """Return the folder that holds the built kernels.

    A user without a home folder, as in many containers, gets one of their own under the system's temporary folder.

    Raises:
        RunError: another user could have put something into that folder.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "robust-lr"
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and os.access(home, os.W_OK):
        return home / ".cache" / "robust-lr"
    folder = Path(tempfile.gettempdir()) / f"robust-lr-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RunError(f"{folder} is not a folder that this user alone can write to; set XDG_CACHE_HOME")
    return folder


def missing(device: str, capabilities: Capabilities | None = None) -> str | None:
    """Return the reason why the kernels for a device cannot be built here, or None."""
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


def plan_for(device: str, capabilities: Capabilities | None = None, march: str | None = None) -> Plan:
    """Plan the build of the kernels for a device for which nothing is `missing`.

    Args:
        device: "cpu" or "cuda".
        capabilities: compute capabilities to compile for; by default `nvcc.wanted_capabilities()`.
        march: processors to compile for, e.g. "x86-64-v3"; by default this machine's.
    """
    compiler = find_compiler()
    assert compiler is not None
    torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-I{_torch_folder() / 'include'}"]
    cpp = [*compiler.command, *FLAGS, *torch_flags]
    link = [*compiler.command, "-shared"]
    libraries = [f"-L{_torch_folder() / 'lib'}", "-ltorch_cpu", "-lc10"]
    if device == "cpu":
        processor = [f"-march={march}"] if march else compiler.native
        versions: tuple[str, ...] = (compiler.version if march else repr(sorted(compiler.macros.items())),)
        return Plan("robust_lr", ("", "cpu/**/"), {".cpp": [*cpp, *processor]}, link, libraries, versions)
    # No flags for this machine's processor: a machine without a GPU may build it for machines of another kind.
    toolkit = nvcc.find()
    assert toolkit is not None
    architectures = nvcc.architecture_flags(toolkit, capabilities or nvcc.wanted_capabilities())
    cuda = [toolkit.nvcc, *nvcc.FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", *architectures]
    libraries += ["-ltorch_cuda", nvcc.static_runtime(toolkit), "-ldl", "-lrt", "-lpthread"]
    versions = (compiler.version, toolkit.version, *nvcc.environment())
    return Plan("robust_lr_cuda", ("cuda/**/",), {".cpp": cpp, ".cu": cuda}, link, libraries, versions)


def _compile(plan: Plan, folder: Path) -> Path:
    """Run ninja in `folder` and return the library's path there."""
    kinds = {kind: f"compile_{kind[1:]}" for kind in plan.commands}
    objects = {f"{'_'.join(path.relative_to(SOURCES).parts)}.o": path for path in plan.sources()}
    lines = []
    for kind, command in plan.commands.items():
        lines += [f"rule {kinds[kind]}", f"  command = {_quote_for_ninja(command)} -c $in -o $out"]
    lines += [
        "rule link",
        f"  command = {_quote_for_ninja(plan.link)} -o $out $in {_quote_for_ninja(plan.libraries)}",
        *(f"build {name}: {kinds[path.suffix]} {_ninja_path(path)}" for name, path in objects.items()),
        f"build {plan.name}.so: link {' '.join(objects)}",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = find_ninja()
    assert ninja is not None
    answer = run([ninja, "-C", str(folder), f"{plan.name}.so"])
    if answer.returncode != 0:
        raise RunError(f"compiling the kernels failed:\n{answer.stdout}{answer.stderr}".rstrip())
    return folder / f"{plan.name}.so"


def _quote_for_ninja(words: list[str] | tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return "".join("$" + c if c in "$ :" else c for c in str(path.resolve()))


def _torch_folder() -> Path:
    return Path(torch.__file__).parent


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes, which ends with the process even if that is killed."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
