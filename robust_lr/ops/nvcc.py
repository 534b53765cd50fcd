"""Find the CUDA compiler, and ask it where its libraries are and for which GPUs it can compile.

Environment variables:

- `CUDA_HOME` or `CUDA_PATH`: the toolkit; otherwise the nvcc on the PATH, or /usr/local/cuda.
- `TORCH_CUDA_ARCH_LIST`: GPUs to compile for, as for PyTorch's own extensions, e.g. "8.0 9.0" or "Hopper"; otherwise
  those present. Entries older than 8.0 are dropped, and where GPUs are present, entries that none of them needs.
- `NVCC_PREPEND_FLAGS`, `NVCC_APPEND_FLAGS`, `NVCC_CCBIN`: flags that nvcc reads itself, e.g. `-ccbin g++-12` for
  another C++ compiler.
"""

import functools
import logging
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.errors import InputError, RunError

log = logging.getLogger("robust_lr")

Capability = tuple[int, int]

FLAGS = ("-O3", "-std=c++20")
OLDEST = (8, 0)  # the kernels have instructions that came with Ampere

#: names of GPU generations that TORCH_CUDA_ARCH_LIST may hold, as in torch.utils.cpp_extension
GENERATIONS = {
    "Kepler": "3.5",
    "Maxwell": "5.0",
    "Pascal": "6.0 6.1",
    "Volta": "7.0",
    "Turing": "7.5",
    "Ampere": "8.0 8.6",
    "Ada": "8.9",
    "Hopper": "9.0",
    "Blackwell": "10.0 10.3 12.0 12.1",
}


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler that works."""

    nvcc: str
    found_by: str
    version: str
    libraries: tuple[str, ...]  # folders
    capabilities: tuple[tuple[int, int], ...]  # that it can compile for, in order


def locate() -> tuple[str, str] | None:
    """Find the path of nvcc, and the variable or place that led to it."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        nvcc = Path(os.environ.get(variable, "")) / "bin" / "nvcc"
        if os.environ.get(variable) and nvcc.exists():
            return str(nvcc), variable
    if found := shutil.which("nvcc"):
        return found, "PATH"
    usual = Path("/usr/local/cuda/bin/nvcc")
    return (str(usual), "the usual place") if usual.exists() else None


def find() -> Toolkit | None:
    """Find the CUDA compiler and check that it runs; return None where there is none.

    nvcc itself reports where its parts are, because it may be a link or a script far from its toolkit's folder.

    Raises:
        RunError: nvcc fails.
    """
    located = locate()
    return _probe(*located) if located else None


@functools.cache
def _probe(nvcc: str, found_by: str) -> Toolkit:
    plan = _run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    line = re.search(r"^#\$ LIBRARIES=(.*)$", plan, re.MULTILINE)
    folders = [word[2:] for word in shlex.split(line[1]) if word.startswith("-L")] if line else []
    version = re.search(r"release ([\d.]+)", _run(nvcc, "--version"))
    virtual = re.findall(r"compute_(\d+)(\d)\b", _run(nvcc, "--list-gpu-arch"))
    return Toolkit(
        nvcc,
        found_by,
        version[1] if version else "unknown",
        tuple(os.path.realpath(folder) for folder in folders),
        tuple(sorted((int(major), int(minor)) for major, minor in virtual)),
    )


def environment() -> tuple[str, ...]:
    """Return the variables that nvcc reads, and the version of the C++ compiler that it uses by default."""
    names = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
    host = os.environ.get("NVCC_CCBIN") or shutil.which("gcc")
    version = _run(host, "-dumpfullversion") if host and shutil.which(host) else ""
    return (*(f"{name}={os.environ.get(name, '')}" for name in names), version.strip())


def wanted_capabilities() -> list[tuple[int, int]]:
    """Return the compute capabilities to compile for: those of TORCH_CUDA_ARCH_LIST that help here, or the GPUs' own.

    Containers preset long lists. Entries that the kernels do not support are dropped, and where GPUs are present, so
    are entries that run on none of them; if nothing is left, the GPUs present decide. What is dropped is logged once.

    Raises:
        InputError: an entry that is neither a number like 9.0 nor the name of a generation.
    """
    present = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not names.strip(";, "):
        return present
    named = capabilities(names, "TORCH_CUDA_ARCH_LIST")
    useful = [one for one in named if one >= OLDEST and (not present or any(runs_on(one, gpu) for gpu in present))]
    chosen = useful or present
    if dropped := sorted(set(named) - set(chosen)):
        _log_once(
            f"TORCH_CUDA_ARCH_LIST: {', '.join(map(name_of, dropped))} left out, as the kernels "
            f"{'are for the GPUs present' if present else f'need {name_of(OLDEST)} or newer'}"
        )
    return chosen


def runs_on(code: Capability, gpu: Capability) -> bool:
    """Return True if machine code for `code` runs on `gpu`: same major number, minor number not newer."""
    return code[0] == gpu[0] and code[1] <= gpu[1]


def name_of(capability: Capability) -> str:
    return ".".join(map(str, capability))


@functools.cache
def _log_once(message: str) -> None:
    log.info(message)


def capabilities(names: str, source: str) -> list[tuple[int, int]]:
    """Parse compute capabilities, e.g. "8.0 9.0", "8.0;9.0a", "9.0+PTX" or "Ampere"; `source` is for the error.

    Raises:
        InputError: an entry that is neither a number like 9.0 nor the name of a generation, or no entry.
    """
    words = re.split(r"[;,\s]+", names.strip(";, "))
    numbers = " ".join(GENERATIONS.get(word.removesuffix("+PTX"), word) for word in words).split()
    found = [re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", number) for number in numbers]
    if None in found or not found:
        generations = ", ".join(GENERATIONS)
        raise InputError(f"{source} must name compute capabilities like 8.0 or 9.0, or {generations}; got {names!r}")
    return sorted({(int(match[1]), int(match[2])) for match in found if match})


def newer_than_driver(toolkit: Toolkit) -> str | None:
    """Return the reason why this toolkit is too new for the driver, or None.

    A driver runs code of its own major CUDA version or older. It also refuses PTX of a newer minor version, but only
    GPUs that the compiler does not know need PTX.
    """
    driver = driver_version()
    version = re.match(r"(\d+)", toolkit.version)
    if driver is None or version is None or int(version[1]) <= driver[0]:
        return None
    return (
        f"the CUDA compiler {toolkit.nvcc} is of CUDA {toolkit.version}, newer than the driver, which supports CUDA "
        f"{name_of(driver)} (update the driver, or name an older toolkit in CUDA_HOME)"
    )


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, e.g. (12, 8); None without a GPU, or CUDA in PyTorch."""
    if not torch.cuda.is_available():
        return None
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # PyTorch without CUDA has none
    if ask is None:
        return None
    number: int = ask()
    return number // 1000, number % 1000 // 10


def check_compilable(named: list[tuple[int, int]]) -> None:
    """Refuse capabilities that the compiler here, if there is one, does not know or that the kernels cannot run on.

    Raises:
        InputError: a capability is refused; the message lists those that can be compiled for.
    """
    toolkit = find() if named else None
    if toolkit is None:
        return
    usable = [known for known in toolkit.capabilities if known >= OLDEST]
    for capability in named:
        if capability not in usable:
            words = ", ".join(".".join(map(str, known)) for known in usable)
            raise InputError(
                f"compute capability {'.'.join(map(str, capability))}: nvcc {toolkit.version} compiles the kernels for "
                f"{words}"
            )


def architecture_flags(toolkit: Toolkit, wanted: list[tuple[int, int]]) -> list[str]:
    """Return the flags that compile for GPUs of the wanted capabilities.

    The newest capability also gets code that the driver translates for newer GPUs, even if the compiler does not know
    them.

    Raises:
        RunError: a GPU is too old for the kernels, or older than all that the compiler knows.
    """
    flags = []
    for capability in sorted(wanted):
        usable = [known for known in toolkit.capabilities if OLDEST <= known <= capability]
        if not usable:
            needed, found = name_of(OLDEST), name_of(capability)
            raise RunError(f"the CUDA kernels need a GPU of compute capability {needed} or newer, this is {found}")
        major, minor = usable[-1]
        translated, code = f"compute_{major}{minor}", f"sm_{major}{minor}"
        codes = [code] * (usable[-1] == capability) + [translated] * (capability == max(wanted))
        flags.append(f"-gencode=arch={translated},code=[{','.join(codes or [translated])}]")
    return list(dict.fromkeys(flags))


def static_runtime(toolkit: Toolkit) -> str:
    """Return the path of the static CUDA runtime library, of the toolkit or of PyTorch's own dependencies.

    Raises:
        RunError: there is none.
    """
    packages = Path(torch.__file__).parents[1] / "nvidia"
    found = [Path(folder) / "libcudart_static.a" for folder in toolkit.libraries]
    found += packages.glob("*/lib/libcudart_static.a")
    for path in found:
        if path.exists():
            return str(path)
    raise RunError(
        f"libcudart_static.a was not found in {', '.join(toolkit.libraries) or 'any folder'} of {toolkit.nvcc}"
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise RunError(f"the CUDA compiler does not work: {shlex.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout + done.stderr
