"""Checks that files can be written, and atomic writes."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from .errors import InputError


def check_writable(**files: Path | None) -> None:
    """Raise an error for files that cannot be written, before any work is done.

    Args:
        files: paths by the names of their parameters; None and "-" (stdout) are skipped.

    Raises:
        InputError: a path is a folder, or its folder cannot be written to or created.
    """
    for name, file in files.items():
        if file is None or file == Path("-"):
            continue
        if file.is_dir():
            raise InputError(f"`{name}` {file} is a folder: give a file in it")
        check_writable_folder(**{name: file.parent})


def check_writable_folder(**folders: Path | None) -> None:
    """Raise an InputError for folders that cannot be created or written to; None is skipped."""
    for name, folder in folders.items():
        if folder is None:
            continue
        try:
            place = folder.absolute()
            while not place.exists():
                place = place.parent
            if not place.is_dir():
                raise InputError(f"`{name}` {folder}: {place} is a file, not a folder; choose another path")
            with tempfile.TemporaryFile(dir=place):
                pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"`{name}` {folder} cannot be written: {reason}; choose another path") from None


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never a part of it."""
    write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a temporary file beside ``path``, fsync it and rename it to ``path``. An existing file's mode is kept.

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
        if error.errno is not None:  # str(error) shows the file name only beside an errno
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
