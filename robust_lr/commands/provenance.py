"""The command that made a run, kept beside it so that a report can repeat it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ..utils.files import write_atomic

#: file in a run folder; ``reports`` reads it
COMMAND = "command.txt"


def keep_command(folder: Path) -> None:
    """Write the command line of this process to ``command.txt`` in ``folder``."""
    write_atomic(folder / COMMAND, f"{shlex.join(['robust-lr', *sys.argv[1:]])}\n".encode())
