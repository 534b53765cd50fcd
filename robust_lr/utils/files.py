"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of one."""
    write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, fsync it, and rename it. The mode is the old file's, else the umask's.

    Raises:
        OSError: names ``path``.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # else the message stands alone
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
