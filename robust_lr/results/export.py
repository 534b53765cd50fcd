"""Per-image rows for other programs: CSV, Parquet, and data frames of pandas or polars."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import write_atomic
from .ledger import Row

#: columns of an export, in the ledger's order
COLUMNS = tuple(field.name for field in fields(Row))

#: libraries that make data frames, in order of preference
FRAME_LIBRARIES = ("pandas", "polars")


def records(rows: Sequence[Row], **prefix: str) -> list[dict[str, Any]]:
    """Return one dict per row; ``prefix`` adds leading columns with the same value in every row."""
    return [{**prefix, **{name: getattr(row, name) for name in COLUMNS}} for row in rows]


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV with a header; booleans are lower-case and None is empty, so that pandas and polars infer types."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table[0] if table else COLUMNS)
    for record in table:
        writer.writerow(str(value).lower() if isinstance(value, bool) else value for value in record.values())
    return text.getvalue()


def write_csv(path: str | Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write ``to_csv`` to a file, atomically."""
    write_atomic(Path(path), to_csv(table).encode())


def write_parquet(path: str | Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write a Parquet file, atomically.

    Raises:
        InputError: neither polars nor pandas with pyarrow is installed.
    """
    buffer = io.BytesIO()
    for library in ("polars", "pandas"):
        try:
            frame = importlib.import_module(library)
            if library == "polars":
                frame.DataFrame(list(table), infer_schema_length=None).write_parquet(buffer)
            else:
                frame.DataFrame(list(table)).to_parquet(buffer, index=False)
        except ImportError:
            continue
        write_atomic(Path(path), buffer.getvalue())
        return
    raise InputError("Parquet needs polars, or pandas with pyarrow: pip install polars")


def dataframe(table: Sequence[Mapping[str, Any]]) -> Any:
    """Return a pandas data frame, or a polars one if pandas is not installed.

    Raises:
        InputError: neither is installed.
    """
    for library in FRAME_LIBRARIES:
        try:
            frame = importlib.import_module(library)
        except ImportError:
            continue
        columns = list(table[0]) if table else list(COLUMNS)
        return frame.DataFrame({name: [record[name] for record in table] for name in columns})
    raise InputError("a data frame needs pandas or polars: pip install pandas")
