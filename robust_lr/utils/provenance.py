"""Provenance recorded with every result: versions, device, date, command and commit."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

DISTRIBUTION = "robust-lr"


def versions() -> dict[str, str]:
    """Return the versions of the software that the numbers depend on."""
    return {
        DISTRIBUTION: metadata.version(DISTRIBUTION),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
    }


def origin() -> dict[str, str | None]:
    """Return the date (UTC), the command, and the commit if the package is in a git checkout."""
    command = shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "commit": _commit()}


@cache
def _commit() -> str | None:
    """Return the hash of the checked-out commit, with "-dirty" if files have changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """Return the name of the processor, e.g. "cuda: NVIDIA H100 80GB HBM3" or "cpu: AMD EPYC 9R14, 2 threads"."""
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
