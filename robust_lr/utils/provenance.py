"""Software versions and device names, which every result records."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

DISTRIBUTION = "robust-lr"


def versions() -> dict[str, str]:
    """Versions of the software that numbers depend on."""
    return {
        DISTRIBUTION: metadata.version(DISTRIBUTION),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Name of the device's processor, e.g. "cuda: NVIDIA H100 80GB HBM3" or "cpu: AMD EPYC 9R14, 2 threads"."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device.type}: {_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
