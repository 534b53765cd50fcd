"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from .errors import InputError


def check_writable(**files: Path | None) -> None:
    """Refuse files that could not be written, before the work that would fill them.

    Args:
        files: paths by the names of their parameters; None is skipped.

    Raises:
        InputError: the path is a folder, or its folder cannot be written or made.
    """
    for name, file in files.items():
        if file is None or file == Path("-"):  # stdout
            continue
        if file.is_dir():
            raise InputError(f"`{name}` {file} is a folder: name a file in it")
        check_writable_folder(**{name: file.parent})


def check_writable_folder(**folders: Path | None) -> None:
    """Refuse folders that could not be made or written to, as ``check_writable`` does for files."""
    for name, folder in folders.items():
        if folder is None:
            continue
        try:
            place = folder.absolute()
            while not place.exists():
                place = place.parent
            if not place.is_dir():
                raise InputError(f"`{name}` {folder}: {place} is a file, not a folder; choose another place")
            with tempfile.TemporaryFile(dir=place):
                pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"`{name}` {folder} cannot be written: {reason}; choose another place") from None


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of one."""
    write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, fsync it, and rename it. The mode is the old file's, else the umask's.

    Raises:
        OSError: the write failed; the error names ``path``.
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
        if error.errno is not None:  # without a number, str(error) shows no file name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
