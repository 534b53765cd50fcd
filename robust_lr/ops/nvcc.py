"""Finds the CUDA compiler, and asks it where its libraries are and for which GPUs it can compile.

The environment decides:

- `CUDA_HOME` or `CUDA_PATH`: the toolkit; otherwise the nvcc on the PATH, or /usr/local/cuda.
- `TORCH_CUDA_ARCH_LIST`: GPUs to compile for, as for PyTorch's own extensions, e.g. "8.0 9.0"; otherwise those present.
- `NVCC_PREPEND_FLAGS`: flags that nvcc reads itself, e.g. `-ccbin g++-12` for another C++ compiler.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.errors import InputError, RunError

FLAGS = ("-O3", "-std=c++20")
OLDEST = (8, 0)  # the kernels copy asynchronously, which came with Ampere


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler that works."""

    nvcc: str
    found_by: str
    version: str
    libraries: tuple[str, ...]  # folders
    capabilities: tuple[tuple[int, int], ...]  # that it can compile for, in order


def locate() -> tuple[str, str] | None:
    """The path of nvcc, and what led to it."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        nvcc = Path(os.environ.get(variable, "")) / "bin" / "nvcc"
        if os.environ.get(variable) and nvcc.exists():
            return str(nvcc), variable
    if found := shutil.which("nvcc"):
        return found, "PATH"
    usual = Path("/usr/local/cuda/bin/nvcc")
    return (str(usual), "the usual place") if usual.exists() else None


def find() -> Toolkit | None:
    """The CUDA compiler, checked to run; None where there is none.

    nvcc itself says where its parts are: it may be a link or a script, far from its toolkit's folder.

    Raises:
        RunError: for an nvcc that fails.
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


def wanted_capabilities() -> list[tuple[int, int]]:
    """The compute capabilities to compile for: those named in TORCH_CUDA_ARCH_LIST, or of the GPUs present.

    Raises:
        InputError: for a name that is not a number like 9.0.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if named.strip():
        return capabilities(named, "TORCH_CUDA_ARCH_LIST")
    return sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})


def capabilities(names: str, source: str) -> list[tuple[int, int]]:
    """Compute capabilities from their names, e.g. "8.0 9.0", "8.0;9.0" or "9.0+PTX"; `source` is for the error.

    Raises:
        InputError: for a name that is not a number like 9.0, or none at all.
    """
    words = re.split(r"[;,\s]+", names.strip(";, "))
    found = [re.fullmatch(r"(\d+)\.(\d)a?(\+PTX)?", word) for word in words]
    if None in found:
        raise InputError(f"{source} must name compute capabilities like 8.0 or 9.0, got {names!r}")
    return sorted({(int(match[1]), int(match[2])) for match in found if match})


def architecture_flags(toolkit: Toolkit, wanted: list[tuple[int, int]]) -> list[str]:
    """Flags that compile for GPUs of the wanted capabilities.

    With the newest comes code that the driver translates for newer ones, also where the compiler does not know them.

    Raises:
        RunError: for a GPU that is too old, or older than all that the compiler knows.
    """
    flags = []
    for capability in sorted(wanted):
        usable = [known for known in toolkit.capabilities if OLDEST <= known <= capability]
        if not usable:
            name, oldest = ".".join(map(str, capability)), ".".join(map(str, OLDEST))
            raise RunError(f"the CUDA kernels need a GPU of compute capability {oldest} or newer, this is {name}")
        major, minor = usable[-1]
        translated, code = f"compute_{major}{minor}", f"sm_{major}{minor}"
        codes = [code] * (usable[-1] == capability) + [translated] * (capability == max(wanted))
        flags.append(f"-gencode=arch={translated},code=[{','.join(codes or [translated])}]")
    return list(dict.fromkeys(flags))


def static_runtime(toolkit: Toolkit) -> str:
    """The static CUDA runtime library, of the toolkit or of PyTorch's own dependencies.

    Raises:
        RunError: where there is none.
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
