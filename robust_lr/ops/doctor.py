"""Diagnose what compiles and computes the local relation on this machine, and why."""

from __future__ import annotations

import shlex
from typing import NamedTuple

import torch

from ..utils.errors import RunError
from . import build, library, nvcc
from .compiler import find_compiler, find_ninja


class Prospect(NamedTuple):
    """Implementation that tensors on a device would use, and the reason."""

    uses: str
    why: str
    library: str | None = None
    built: bool = False


def describe() -> dict[str, object]:
    """Describe what was found and what would be used and why, without building anything."""
    cpu, cuda = prospect("cpu"), prospect("cuda")
    return {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        **_compiler(),
        "ninja": find_ninja(),
        **_cuda(),
        "mode": library.chosen_mode(),
        "cache": str(build.cache_folder()),
        **cpu._asdict(),
        **{f"cuda_{name}": value for name, value in cuda._asdict().items()},
    }


def prospect(device: str) -> Prospect:
    """Predict the implementation for tensors on "cpu" or "cuda"."""
    mode = library.chosen_mode()
    if mode == "off":
        return Prospect("plain PyTorch", "ROBUST_LR_EXTENSION=off")
    try:
        if found := library.prebuilt(device):
            why = f"from the wheel, for {found.vectors}" if found.vectors else "from the wheel"
            return Prospect("compiled kernels", why, str(found.path), True)
        reason = build.missing(device)
        if reason:
            return Prospect("an error" if mode == "require" else "plain PyTorch", reason)
        path = build.plan_for(device).library()
    except RunError as error:
        return Prospect("an error", str(error))
    built = path.exists()
    return Prospect("compiled kernels", "built" if built else "will be built at first use", str(path), built)


def _compiler() -> dict[str, object]:
    try:
        compiler, vectors = find_compiler(), library.vectors()
    except RunError:  # which `prospect` reports
        compiler = vectors = None
    return {
        "compiler": shlex.join(compiler.command) if compiler else None,
        "compiler_version": compiler.version if compiler else None,
        "vectors": vectors,
    }


def _cuda() -> dict[str, object]:
    located = nvcc.locate()
    try:
        toolkit = nvcc.find()
    except RunError:
        toolkit = None
    return {
        "nvcc": located[0] if located else None,
        "nvcc_found_by": located[1] if located else None,
        "nvcc_version": toolkit.version if toolkit else None,
        "driver_supports": nvcc.name_of(driver) if (driver := nvcc.driver_version()) else None,
        "nvcc_compiles_for": _names(list(toolkit.capabilities)) if toolkit else None,
        "gpus": [
            f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
            for i in range(torch.cuda.device_count())
        ],
        "architectures": _names(nvcc.wanted_capabilities()),
    }


def _names(capabilities: build.Capabilities) -> list[str]:
    return [f"{major}.{minor}" for major, minor in capabilities]
