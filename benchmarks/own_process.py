"""Programs in processes of their own, with the number of threads and the way they wait that their libraries choose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

#: environment variables that set the number of threads and how they wait
POLICY = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")


def default_environment() -> dict[str, str]:
    """Return the environment without the variables of ``POLICY``."""
    return {name: value for name, value in os.environ.items() if name not in POLICY}


def run_command(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command, by default in the ``default_environment``, and return what it prints.

    Raises:
        RuntimeError: the command fails; has what it wrote to stderr.
    """
    environment = default_environment() if environment is None else environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def run_script(script: str, *arguments: str | float) -> Any:
    """Run a script with ``--run`` and parse the JSON in its last line."""
    printed = run_command([sys.executable, script, "--run", *map(str, arguments)])
    return json.loads(printed.splitlines()[-1])
