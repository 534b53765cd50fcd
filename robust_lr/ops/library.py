"""Load the compiled kernels: those that a wheel brings, or else those that this machine compiles at first use.

`ROBUST_LR_EXTENSION` decides. If it is unset, the kernels are used, and where there are neither kernels nor a compiler,
a warning is given once and plain PyTorch is used; `require` makes that an error; `off` uses plain PyTorch. A compiler
that fails is an error that shows its output, never a silent fallback.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ..utils.errors import InputError, RunError
from . import build, nvcc
from .compiler import PORTABLE, find_compiler

#: the folder of a wheel's libraries
PREBUILT = Path(__file__).with_name("lib")


@dataclass(frozen=True)
class Variant:
    """One of the libraries that a wheel brings for CPUs: the vectors that it uses, and how GCC names its processors."""

    name: str
    vectors: str
    march: str


#: variants by the processor capability that PyTorch reports; the newest first
VARIANTS = {
    "AVX512": Variant("avx512", "AVX-512", "x86-64-v4"),
    "AVX2": Variant("avx2", "AVX2", "x86-64-v3"),
    "DEFAULT": Variant("portable", PORTABLE, "x86-64"),
}


@dataclass(frozen=True)
class Library:
    """A library of kernels, and for a CPU the vectors that it uses."""

    path: Path
    vectors: str | None = None


def load(device: str = "cpu") -> bool:
    """Make the compiled operators available for tensors on "cpu" or "cuda", compiling them if need be.

    Returns:
        True if they are available.

    Raises:
        RunError: a compiler fails, or there is none under `ROBUST_LR_EXTENSION=require`.
        InputError: `ROBUST_LR_EXTENSION` has another value.
    """
    mode = chosen_mode()
    if mode == "off" or device not in ("cpu", "cuda"):
        return False
    reason = missing(device)
    if reason is None:
        _load_library(find_or_build("cpu").path)  # defines the operators
        if device == "cuda":
            _load_library(find_or_build("cuda").path)
        return True
    if mode == "require":
        raise RunError(f"{reason}, and ROBUST_LR_EXTENSION=require does not allow plain PyTorch instead")
    _warn_once(f"{reason}: using plain PyTorch, which is many times slower (ROBUST_LR_EXTENSION=off hides this)")
    return False


def chosen_mode() -> str:
    """Return the mode that ROBUST_LR_EXTENSION chooses."""
    mode = os.environ.get("ROBUST_LR_EXTENSION", "") or "auto"
    if mode not in ("auto", "off", "require"):
        raise InputError(f"ROBUST_LR_EXTENSION must be unset, off or require, got {mode!r}")
    return mode


def missing(device: str) -> str | None:
    """Return the reason why there can be no kernels for a device here, or None."""
    return None if prebuilt(device) else build.missing(device)


def find_or_build(device: str) -> Library:
    """Return the wheel's library for a device, or else one compiled here, now if need be."""
    return prebuilt(device) or Library(build.build(device), compiled_vectors() if device == "cpu" else None)


def prebuilt(device: str) -> Library | None:
    """Return the library that the wheel brings for a device and this machine, or None."""
    if device == "cuda":
        path = PREBUILT / "robust_lr_cuda.so"
        return Library(path) if path.exists() and torch.version.cuda and runs_on_gpus() else None
    variant = processor_variant()
    if variant is None:
        return None
    path = PREBUILT / f"robust_lr_{variant.name}.so"
    return Library(path, variant.vectors) if path.exists() else None


def processor_variant() -> Variant | None:
    """Return the variant for this processor, or None where wheels have none for its kind."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    return VARIANTS.get(torch.backends.cpu.get_cpu_capability(), VARIANTS["DEFAULT"])


def runs_on_gpus() -> bool:
    """Return True if the wheel's CUDA library was compiled for the GPUs that are present.

    Machine code runs on later GPUs of the same major number; with the newest comes code that the driver translates for
    all later ones.
    """
    built = nvcc.capabilities((PREBUILT / "robust_lr_cuda.txt").read_text(), "robust_lr_cuda.txt")
    present = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return all(gpu >= max(built) or any(nvcc.runs_on(code, gpu) for code in built) for gpu in present)


def vectors() -> str | None:
    """Return the vectors that the CPU kernels use, or None where there are no kernels."""
    if chosen_mode() == "off" or missing("cpu") is not None:
        return None
    library = prebuilt("cpu")
    return library.vectors if library else compiled_vectors()


def compiled_vectors() -> str | None:
    """Return the vectors of kernels that are compiled here."""
    compiler = find_compiler()
    return compiler.vectors if compiler else None


@functools.cache
def _load_library(library: Path) -> None:
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
