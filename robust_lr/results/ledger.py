"""A ledger in SQLite with one row for each evaluated image: rows survive a crash, and a run resumes after the last."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..utils.errors import InputError, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Findings of an evaluation for one image.

    Attributes:
        id: identifier of the image.
        input_hash: first 16 hexadecimal digits of the SHA-256 of its pixels, float32 [C, H, W].
        label: its true class.
        target: the class aimed at, None where there is none or more than one.
        clean: prediction for the clean image.
        adversarial: prediction for the finished image: the last iterate, or the first success where that ends the
            attack; of the first restart that broke the image, or else the last one.
        robust: right under the protocol's criterion: at the last iterate of every restart, or at every iterate seen.
        robust_worst_seen: right when clean and at every iterate of every restart.
        success: the attack reached its aim, under the same criterion; see ``Result.success`` for the denominator.
        first_success: number of steps after which it was first reached, None if never; the smallest over restarts.
        first_wrong: the same for a misclassification (0: when clean or at the start).
        clean_loss: cross-entropy of the true class for the clean image.
        zero_gradients: number of steps, over all restarts, at which the gradient was zero everywhere.
        margin: the smallest seen of the true class's logit minus the best other one.
        loss: cross-entropy of the true class for the finished image.
        distance: |x_adv - x| in the protocol's norm, the largest over restarts.
        broken_by: the attack of a cascade that broke the image; None if none did, or it was wrong when clean.
        record: at each of the protocol's recorded steps, "r" right in every restart, "t" the target, "w" else wrong.
        robust_rounded: right on the finished image rounded to 256 levels, as a PNG holds it; None where images were
            not kept.
        wrong_passes: number of the repeated passes of a random model that misclassified the finished image; None for a
            deterministic model, which is asked once.
        unconfirmed: number of successes that the model did not confirm in a pass of its own; the attack then went on.
        steps_skipped: steps that were not computed because the iterates of the attack had come back to the bit.
        forwards, backwards: passes of the model that were spent on the image, those of the padding left out.
        seconds: its share of the time.
    """

    id: int
    input_hash: str
    label: int
    target: int | None
    clean: int
    adversarial: int
    robust: bool
    robust_worst_seen: bool
    success: bool
    first_success: int | None
    first_wrong: int | None
    clean_loss: float
    zero_gradients: int
    margin: float
    loss: float
    distance: float
    broken_by: str | None
    record: str
    unconfirmed: int
    steps_skipped: int = 0
    forwards: int
    backwards: int
    seconds: float
    robust_rounded: bool | None = None
    wrong_passes: int | None = None


_NAMES = [field.name for field in fields(Row)]
_VALUES = attrgetter(*_NAMES)  # faster than `astuple`, whose deep copies take longer than the database
_FLAGS = {field.name for field in fields(Row) if str(field.type).startswith("bool")}
_COLUMNS = ", ".join(_NAMES)
_HOLES = ", ".join("?" for _ in _NAMES)


#: meaning of a difference in a hash
_MEANINGS = {
    "weights_sha256": "the network has other weights",
    "images_sha256": "the images are others",
    "targets_sha256": "the attack aims at other classes",
    "architecture": "the network is built otherwise",
}


def format_for_message(value: Any) -> str:
    """Show a value in a message; the first digits of a hash are enough to tell it apart."""
    is_hash = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return f"{value[:8]}..." if is_hash else repr(value)


def explain_difference(key: str) -> str:
    """Explain a difference in ``key``, in parentheses; empty if the values explain themselves."""
    return f" ({_MEANINGS[key]})" if key in _MEANINGS else ""


def first_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], but: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return the first key, except those in ``but``, whose values differ, and both values, None for a missing one."""
    for key in [*one, *other]:
        if one.get(key) != other.get(key) and key not in but:
            return key, one.get(key), other.get(key)
    return None


def remove(path: Path) -> None:
    """Delete a ledger and the journal of an interrupted transaction, which SQLite would apply to the next ledger."""
    for file in (path, journal_of(path)):
        file.unlink(missing_ok=True)


def journal_of(path: Path) -> Path:
    """Return the file in which SQLite keeps what a transaction overwrites."""
    return path.with_name(f"{path.name}-journal")


def read(path: Path) -> list[Row]:
    """Read the rows of a ledger on disk, by id.

    Raises:
        InputError: there is no ledger, or another version wrote it.
    """
    with _open_for_reading(path) as connection:
        return _rows(connection)


def read_configuration(path: Path) -> dict[str, Any]:
    """Read the configuration of a ledger on disk; InputError as ``read``, or where none was written yet."""
    with _open_for_reading(path) as connection:
        kept = connection.execute("SELECT json FROM configuration").fetchone()
    if kept is None:
        raise InputError(f"{path} is empty: run the same command again")
    configuration: dict[str, Any] = json.loads(kept[0])
    return configuration


def read_finding(path: Path, name: str) -> Any:
    """Read the finding that ``Ledger.remember`` saved under a name in a ledger on disk, None if there is none."""
    with _open_for_reading(path) as connection:
        kept = connection.execute("SELECT json FROM findings WHERE name = ?", (name,)).fetchone()
    return None if kept is None else json.loads(kept[0])


@contextmanager
def _open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger for reading; what a killed process left unfinished is rolled back, which takes writing."""
    if not path.is_file():
        raise InputError(f"{path}: there is no ledger")
    try:
        mode = "rw" if journal_of(path).exists() else "ro"
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read as a ledger of this version: {error}") from None


def _rows(connection: sqlite3.Connection) -> list[Row]:
    with closing(connection.execute(f"SELECT {_COLUMNS} FROM images ORDER BY id")) as cursor:
        return [_row(values) for values in cursor.fetchall()]


def _row(values: Sequence[Any]) -> Row:
    named: dict[str, Any] = dict(zip(_NAMES, values, strict=True))
    named |= {name: bool(named[name]) for name in _FLAGS if named[name] is not None}
    return Row(**named)


class Ledger:
    """Rows keyed by image id, and the configuration that they belong to. ``path`` None keeps them in memory.

    Transactions are made safe by SQLite's rollback journal, which works on network file systems too; a write-ahead log
    would not.
    """

    def __init__(self, path: Path | None, configuration: Mapping[str, Any], *, resume: bool = False):
        self.path, self.is_new = path, path is not None and not path.exists()
        if path is not None and path.exists() and not resume:
            raise InputError(
                f"{path} exists: resume that evaluation, start afresh (`fresh`), or choose another folder (`out`)"
            )
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path or ":memory:", timeout=5)
        except OSError as error:
            raise InputError(f"{error.filename} cannot be a folder: {error.strerror}; choose another (`out`)") from None
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be used as a ledger: {error}") from None
        try:
            with self.connection as connection:
                connection.execute("BEGIN")  # waits for the disk once, and writes nothing to a ledger that differs
                connection.execute("CREATE TABLE IF NOT EXISTS configuration (json TEXT NOT NULL)")
                connection.execute(f"CREATE TABLE IF NOT EXISTS images ({_COLUMNS}, PRIMARY KEY (id))")
                connection.execute("CREATE TABLE IF NOT EXISTS findings (name TEXT PRIMARY KEY, json TEXT NOT NULL)")
                self._check_configuration(configuration)
        except sqlite3.Error as error:
            self.close()
            raise InputError(f"{path} cannot be used as a ledger: {error}") from None
        except InputError:
            self.close()
            raise

    def _check_configuration(self, configuration: Mapping[str, Any]) -> None:
        """Write ``configuration`` to a new ledger; in an old one, raise an InputError unless it is the same."""
        kept = self.connection.execute("SELECT json FROM configuration").fetchone()
        if kept is None:
            self.connection.execute("INSERT INTO configuration VALUES (?)", (json.dumps(configuration),))
            return
        if (found := first_difference(json.loads(json.dumps(configuration)), json.loads(kept[0]))) is not None:
            key, now, before = found
            was, is_now = format_for_message(before), format_for_message(now)
            raise InputError(
                f"{self.path} holds another evaluation: {key} was {was} and is {is_now}{explain_difference(key)}; "
                "start afresh (`fresh`), or choose another folder (`out`)"
            )

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows in one transaction: all of them or none."""
        try:
            with self.connection:
                self.connection.executemany(f"INSERT INTO images VALUES ({_HOLES})", map(_VALUES, rows))
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}; rows written before are safe, resume to go on") from None

    def remember(self, name: str, value: Any) -> None:
        """Save a finding about all images together, as JSON, for when the evaluation resumes."""
        try:
            with self.connection:
                self.connection.execute("INSERT INTO findings VALUES (?, ?)", (name, json.dumps(value)))
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}") from None

    def recall(self, name: str) -> Any:
        """Return the finding that ``remember`` saved under a name, None if there is none."""
        kept = self.connection.execute("SELECT json FROM findings WHERE name = ?", (name,)).fetchone()
        return None if kept is None else json.loads(kept[0])

    def rows(self) -> list[Row]:
        """Return all rows, by id."""
        return _rows(self.connection)

    def ids(self) -> set[int]:
        return {row[0] for row in self.connection.execute("SELECT id FROM images")}

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def removed_if_it_fails(self) -> Iterator[None]:
        """Remove the file if the evaluation inside fails before its first row, so that another may follow in its place.

        A file that was there before stays.
        """
        try:
            yield
        except (InputError, RunError):
            if self.path is not None and self.is_new and not self.ids():
                self.close()
                self.path.unlink(missing_ok=True)
            raise
