"""Read finished evaluations from disk: configuration, result, and one row per image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .ledger import Row, read, read_configuration
from .targets import Targets


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation on disk.

    Attributes:
        folder: the ``out`` of ``evaluate``.
        configuration: configuration in the ledger.
        record: JSON form of the result.
        rows: the ledger's rows, ordered by id.
    """

    folder: Path
    configuration: dict[str, Any]
    record: dict[str, Any]
    rows: list[Row]

    @property
    def protocol(self) -> dict[str, Any]:
        values: dict[str, Any] = self.record["protocol"]
        return values

    def targets(self) -> Targets:
        """Return the target classes of the images; InputError if the attack was untargeted."""
        aimed = [(row.id, row.label, row.target) for row in self.rows if row.target is not None]
        if not aimed:
            raise InputError(f"{self.folder} has no targets: the protocol {self.protocol['name']!r} is untargeted")
        return Targets(
            rows=tuple(aimed),
            num_classes=self.configuration["classes"],
            data=self.record["data"],
            images_sha256=self.record["images_sha256"],
            seed=self.record["seed"] if self.protocol["target"] == "uniform" else None,
        )


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read the evaluation in ``folder`` without changing it.

    Raises:
        InputError: there is no evaluation, it is unfinished, or another version wrote it.
    """
    folder = Path(folder)
    configuration, rows = read_ledger(folder)
    if len(rows) != configuration["images"]:
        raise InputError(
            f"{folder} is not finished: {len(rows)} of {configuration['images']} images; run the same command again"
        )
    try:
        record = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {RESULT} yet: run the same command again") from None
    except ValueError as error:
        raise InputError(f"{folder / RESULT} is damaged ({error}): run the same command again") from None
    return Evaluation(folder=folder, configuration=configuration, record=record, rows=rows)


def read_ledger(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read the configuration and the rows, ordered by id, of the ledger in ``folder``; InputError if there is none."""
    file = folder / LEDGER
    if not file.is_file():
        inside = sorted(str(found.parent) for found in folder.glob(f"**/{LEDGER}"))
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise InputError(f"{folder} holds no evaluation ({LEDGER}){hint or '; give the `out` of an evaluation'}")
    return read_configuration(file), read(file)


LEDGER, RESULT = "ledger.sqlite", "result.json"
