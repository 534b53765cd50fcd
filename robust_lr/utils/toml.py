"""Read TOML files, and write values as TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from .errors import InputError


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; InputError if it is missing, unreadable or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def to_literal(value: Any) -> str:
    """Return a value as TOML, whose numbers, strings, booleans and lists are those of JSON."""
    return json.dumps(value, ensure_ascii=False)  # TOML does not allow JSON's escaped surrogate pairs
