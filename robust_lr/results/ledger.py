"""An SQLite ledger with one row per evaluated image. Rows survive a crash, and an evaluation resumes from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..utils.errors import InputError, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The result of an evaluation for one image.

    Attributes:
        id: id of the image.
        input_hash: first 16 hexadecimal digits of the SHA-256 of its pixels, float32 [C, H, W].
        label: true class.
        target: target class; None if there is none or more than one.
        clean: predicted class of the clean image.
        adversarial: predicted class of the final image, which is the last iterate, or the first success if that ends
            the attack. It comes from the first restart that broke the image, else from the last restart.
        robust: whether the prediction is right under the protocol's criterion: at the last iterate of every restart,
            or at every iterate.
        robust_worst_seen: whether it is right on the clean image and at every iterate of every restart.
        success: whether the attack reached its goal under the same criterion; see ``Result.success`` for the
            denominator.
        first_success: number of steps until the first success, the smallest over restarts; None without success.
        first_wrong: the same for the first misclassification; 0 for the clean image or the start.
        clean_loss: cross-entropy of the true class on the clean image.
        zero_gradients: number of steps, over all restarts, at which the whole gradient was zero.
        margin: true class's logit minus the largest other logit, the smallest over all iterates.
        loss: cross-entropy of the true class on the final image.
        clean_target_loss, target_loss: cross-entropy of the target class, which a targeted attack minimizes, on the
            clean and on the final image; None without a target.
        distance: |x_adv - x| in the protocol's norm, the largest over restarts.
        broken_by: attack of a cascade that broke the image; None if none did or the clean image is misclassified.
        record: one letter per recorded step of the protocol: "r" if right in every restart, "t" if the target was
            predicted, "w" if another wrong class was.
        unconfirmed: number of successes on the attacked copy that the model did not confirm; the attack then continued.
        steps_skipped: number of steps that were not computed because the iterates had begun to repeat exactly.
        forwards, backwards: number of forward and backward passes of this image, without padding.
        seconds: this image's share of the time.
        robust_rounded: whether the prediction is right on the final image rounded to 256 levels; None if images were
            not saved.
        wrong_passes: number of a random model's repeated passes that misclassified the final image; None for a
            deterministic model.
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
    clean_target_loss: float | None = None
    target_loss: float | None = None
    robust_rounded: bool | None = None
    wrong_passes: int | None = None


_NAMES = [field.name for field in fields(Row)]
_VALUES = attrgetter(*_NAMES)  # faster than `astuple`, whose deep copies take longer than the database
_FLAGS = {field.name for field in fields(Row) if str(field.type).startswith("bool")}
_COLUMNS = ", ".join(_NAMES)
_HOLES = ", ".join("?" for _ in _NAMES)


#: explanation of a difference in a hash
_MEANINGS = {
    "weights_sha256": "the weights of the network differ",
    "images_sha256": "the images differ",
    "targets_sha256": "the target classes differ",
    "architecture": "the architecture of the network differs",
}


def format_for_message(value: Any) -> str:
    """Return a value for a message; a hash is shortened to its first digits."""
    is_hash = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return f"{value[:8]}..." if is_hash else repr(value)


def explain_difference(key: str) -> str:
    """Return an explanation of a difference in ``key``, in parentheses; "" if none is needed."""
    return f" ({_MEANINGS[key]})" if key in _MEANINGS else ""


def first_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], but: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return the first key, not in ``but``, with different values, and both values; a missing value is None."""
    for key in [*one, *other]:
        if one.get(key) != other.get(key) and key not in but:
            return key, one.get(key), other.get(key)
    return None


def remove(path: Path) -> None:
    """Delete a ledger, and the journal of an interrupted transaction, which SQLite would apply to a new ledger."""
    for file in (path, journal_of(path)):
        file.unlink(missing_ok=True)


def journal_of(path: Path) -> Path:
    """Return the path of SQLite's rollback journal."""
    return path.with_name(f"{path.name}-journal")


def read(path: Path) -> list[Row]:
    """Read the rows of a ledger on disk, ordered by id.

    Raises:
        InputError: there is no ledger, or another version wrote it.
    """
    with _open_for_reading(path) as connection:
        return _rows(connection)


def read_configuration(path: Path) -> dict[str, Any]:
    """Read the configuration of a ledger on disk; InputError as in ``read``, or if none was written yet."""
    with _open_for_reading(path) as connection:
        kept = connection.execute("SELECT json FROM configuration").fetchone()
    if kept is None:
        raise InputError(f"{path} is empty: run the same command again")
    configuration: dict[str, Any] = json.loads(kept[0])
    return configuration


def read_finding(path: Path, name: str) -> Any:
    """Read the finding ``name``, saved by ``Ledger.remember``, of a ledger on disk; None if there is none."""
    with _open_for_reading(path) as connection:
        kept = connection.execute("SELECT json FROM findings WHERE name = ?", (name,)).fetchone()
    return None if kept is None else json.loads(kept[0])


@contextmanager
def _open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger for reading, or for writing if the transaction of a killed process must be rolled back."""
    if not path.is_file():
        raise InputError(f"{path}: no such ledger")
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
    """Rows keyed by image id, with the configuration of their evaluation, in a file or, if ``path`` is None, in memory.

    Transactions use SQLite's rollback journal, because a write-ahead log does not work on network file systems.

    Raises:
        InputError: the file exists and ``resume`` is False, holds another evaluation, or cannot be used.
    """

    def __init__(self, path: Path | None, configuration: Mapping[str, Any], *, resume: bool = False):
        self.path, self.is_new = path, path is not None and not path.exists()
        if path is not None and path.exists() and not resume:
            raise InputError(
                f"{path} exists: continue that evaluation (`resume`), start afresh (`fresh`), or choose another folder "
                "(`out`)"
            )
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path or ":memory:", timeout=5)
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be created as a folder: {error.strerror}; choose another (`out`)"
            ) from None
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be used as a ledger: {error}") from None
        try:
            with self.connection as connection:
                connection.execute("BEGIN")  # one disk sync, and nothing is written if the configuration differs
                connection.execute("CREATE TABLE IF NOT EXISTS configuration (json TEXT NOT NULL)")
                connection.execute(f"CREATE TABLE IF NOT EXISTS images ({_COLUMNS}, PRIMARY KEY (id))")
                connection.execute("CREATE TABLE IF NOT EXISTS findings (name TEXT PRIMARY KEY, json TEXT NOT NULL)")
                self._check_columns()
                self._check_configuration(configuration)
                self._written = _rows(connection)
        except sqlite3.Error as error:
            self.close()
            raise InputError(f"{path} cannot be used as a ledger: {error}") from None
        except InputError:
            self.close()
            raise

    def _check_columns(self) -> None:
        """Raise an InputError if another version wrote the ledger, before images are attacked that it cannot take."""
        if [name for name, *_ in self.connection.execute("SELECT * FROM images LIMIT 0").description] != _NAMES:
            raise InputError(
                f"{self.path} was written by another version of robust-lr, with other columns: start afresh (`fresh`), "
                "or choose another folder (`out`)"
            )

    def _check_configuration(self, configuration: Mapping[str, Any]) -> None:
        """Write ``configuration`` to a new ledger; raise an InputError if an existing ledger has another one."""
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

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows in one transaction: either all or none."""
        try:
            with self.connection:
                self.connection.executemany(f"INSERT INTO images VALUES ({_HOLES})", map(_VALUES, rows))
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}; rows written before are safe, continue with `resume`") from None
        self._written += rows

    def remember(self, name: str, value: Any) -> None:
        """Save a finding about the whole evaluation as JSON, so that a resumed evaluation can ``recall`` it."""
        try:
            with self.connection:
                self.connection.execute("INSERT INTO findings VALUES (?, ?)", (name, json.dumps(value)))
        except sqlite3.Error as error:
            raise RunError(f"{self.path}: {error}") from None

    def recall(self, name: str) -> Any:
        """Return the finding ``name``, saved by ``remember``; None if there is none."""
        kept = self.connection.execute("SELECT json FROM findings WHERE name = ?", (name,)).fetchone()
        return None if kept is None else json.loads(kept[0])

    def rows(self) -> list[Row]:
        """Return all rows, those that the file held when it was opened and those added since, ordered by id."""
        return sorted(self._written, key=attrgetter("id"))

    def ids(self) -> set[int]:
        return {row.id for row in self._written}

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
