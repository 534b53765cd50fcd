"""A progress line on stderr for evaluations in scripts and notebooks; the command line has its own progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

#: seconds between two updates of the line
INTERVAL = 0.5


class ProgressLine:
    """A line that each call with (done, total) rewrites, and that ends with a newline when done equals total."""

    def __init__(self, name: str, file: TextIO | None = None):
        self.name, self.file = name, file or sys.stderr
        self.began = time.monotonic()
        self.printed = 0.0
        self.first: int | None = None
        self.robust = self.rows = 0

    def add_rows(self, rows: Sequence[Any]) -> None:
        """Count the rows of a ledger for the robust accuracy so far."""
        self.rows += len(rows)
        self.robust += sum(row.robust for row in rows)

    def __call__(self, done: int, total: int) -> None:
        self.first = done if self.first is None else self.first
        now = time.monotonic()
        if done < total and now - self.printed < INTERVAL:
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        words = [f"{self.name}: {done} / {total} images"]
        words += [f"{rate:.3g} images/s, {(total - done) / rate:.0f} s left"] if rate and done < total else []
        words += [f"robust {100 * self.robust / self.rows:.1f} %"] if self.rows else []
        self.file.write(f"\r\x1b[K{', '.join(words)}{chr(10) if done >= total else ''}")
        self.file.flush()
