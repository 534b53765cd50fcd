"""Merge the shards of an evaluation into the ledger and the result of the whole evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..protocols.files import from_values
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.statistics import Proportion
from .images import IMAGES, gather
from .ledger import Ledger, Row, first_difference, journal_of, read_finding, remove
from .result import Result
from .stored import LEDGER, RESULT, Evaluation, read_evaluation
from .summary import summarize
from .verdict import LEVELS, Probes, join_probes, probes_finding


def merge(folders: Sequence[str | Path], out: str | Path, *, fresh: bool = False) -> Result:
    """Merge the shards of an evaluation into ``out``, with the rows and accuracies of an evaluation without shards.

    Args:
        folders: folders that ``evaluate`` wrote, one for each ``shard``.
        out: folder for the merged ledger and result.
        fresh: replace an evaluation that ``out`` holds.

    Raises:
        InputError: a shard is unfinished, missing, given twice or of another evaluation, or ``out`` already holds an
            evaluation.
    """
    check_out(Path(out), fresh)
    whole = join(folders)
    whole.write(Path(out))
    return whole.result


def check_out(out: Path, fresh: bool) -> None:
    """Raise an InputError if ``out`` holds an evaluation, unless ``fresh``."""
    if (out / LEDGER).exists() and not fresh:
        raise InputError(f"{out} holds an evaluation: choose another folder with `out`")


@dataclass(frozen=True)
class Whole:
    """A merged evaluation that is not on disk yet.

    Attributes:
        images: folders of the adversarial images; empty if images were not saved.
        level: level of the probes; None unless every shard was probed.
    """

    configuration: dict[str, Any]
    rows: list[Row]
    result: Result
    images: tuple[Path, ...] = ()
    level: str | None = None

    def write(self, out: Path) -> None:
        """Write a folder like that of ``evaluate``."""
        partial = out / f".{LEDGER}.{os.getpid()}"
        try:
            with closing(Ledger(partial, self.configuration)) as ledger:
                ledger.add(self.rows)
                if self.result.agreement is not None:
                    ledger.remember("agreement", (self.result.agreement.count, self.result.agreement.n))
                if self.level is not None and self.result.probes is not None:
                    ledger.remember(probes_finding(self.level), self.result.probes.to_json())
                ledger.remember("origin", dict(self.result.origin))
            journal_of(out / LEDGER).unlink(missing_ok=True)  # SQLite would apply an old journal to the new ledger
            os.replace(partial, out / LEDGER)
        finally:
            remove(partial)
        if self.images:
            gather(self.images, out / IMAGES, (row.id for row in self.rows))
        write_json(out / RESULT, self.result.to_dict())


def join(folders: Sequence[str | Path]) -> Whole:
    """Merge the shards in ``folders``; InputError as in ``merge``."""
    ordered = in_order([read_evaluation(folder) for folder in folders])
    check_same_evaluation(ordered)
    first = ordered[0]
    rows = sorted((row for shard in ordered for row in shard.rows), key=lambda row: row.id)
    configuration = {**first.configuration, "images": len(rows), "shard": None}
    records = [shard.record for shard in ordered]
    level, probes = probes_of(ordered)
    result = replace(
        summarize(
            rows,
            from_values(first.protocol),
            model=first.record["model"],
            data=first.record["data"],
            seed=first.record["seed"],
            shard=None,
            batch_invariant=first.record["batch_invariant"],
            hashes={name: first.record[f"{name}_sha256"] for name in ("weights", "images")},
            device="; ".join(dict.fromkeys(record["device"] for record in records)),
            precision=first.record["precision"],
            agreement=merge_agreement(records),
            cycle_detection=first.record["cycle_detection"],
            model_output=first.record["model_output"],
            surrogate=first.configuration["surrogate"],
            randomness=first.configuration["randomness"],
            logits_dtype=first.record.get("logits_dtype", "float32"),
            probes=probes,
            origin=max((record_origin(record) for record in records), key=lambda made: made["date"] or ""),
        ),
        versions=first.record["versions"],
    )
    images = tuple(shard.folder / IMAGES for shard in ordered if first.configuration["saved_images"])
    return Whole(configuration, rows, result, images, level)


def probes_of(shards: Sequence[Evaluation]) -> tuple[str | None, Probes | None]:
    """Return the most thorough level at which every shard was probed, and the joined probes; None if there is none."""
    for level in reversed(LEVELS):
        kept = [read_finding(shard.folder / LEDGER, probes_finding(level)) for shard in shards]
        if all(each is not None for each in kept):
            return level, join_probes([Probes.from_json(each) for each in kept])
    return None, None


def record_origin(record: dict[str, Any]) -> dict[str, str | None]:
    return {key: record.get(key) for key in ("date", "command", "commit")}


def in_order(shards: Sequence[Evaluation]) -> list[Evaluation]:
    """Sort the shards 1/n to n/n; InputError if one is missing or given twice, or an evaluation is not a shard."""
    numbers = []
    for shard in shards:
        if shard.configuration["shard"] is None:
            raise InputError(f"{shard.folder} is not a shard but a whole evaluation: leave it out")
        numbers.append(tuple(map(int, shard.configuration["shard"].split("/"))))
    if not numbers:
        raise InputError("nothing to merge: give the folders of all shards")
    count = numbers[0][1]
    by_index: dict[int, Evaluation] = {}
    for (index, total), shard in zip(numbers, shards, strict=True):
        if total != count:
            raise InputError(
                f"{shards[0].folder} is shard {numbers[0][0]}/{count} and {shard.folder} {index}/{total}: "
                "give shards with the same number of parts"
            )
        if index in by_index:
            raise InputError(
                f"shard {index}/{count} is given twice, {by_index[index].folder} and {shard.folder}: leave one out"
            )
        by_index[index] = shard
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in by_index]
    if missing:
        raise InputError(f"missing: shard {', '.join(missing)}; give the folders of all {count} shards")
    return [by_index[index] for index in range(1, count + 1)]


def check_same_evaluation(shards: Sequence[Evaluation]) -> None:
    """Raise an InputError with the first difference unless all shards belong to one evaluation and share no image."""
    first = shards[0]
    owner: dict[int, Path] = {}
    for shard in shards:
        if (found := first_difference(first.configuration, shard.configuration, but=("shard", "images"))) is not None:
            key, one, other = found
            raise InputError(
                f"{first.folder} and {shard.folder} belong to different evaluations: {key} is {one!r} in the first, "
                f"{other!r} in the second"
            )
        for row in shard.rows:
            if row.id in owner:
                raise InputError(
                    f"image {row.id} is in both {owner[row.id]} and {shard.folder}: give shards of one evaluation"
                )
            owner[row.id] = shard.folder


def merge_agreement(records: Sequence[dict[str, Any]]) -> Proportion | None:
    """Return how often results at a lower precision agree with fp32, on the sample that all shards share."""
    for record in records:
        value, n = record.get("precision_agreement"), record["denominators"].get("precision_agreement")
        if value is not None and n is not None:
            return Proportion(round(value * n), n)
    return None
