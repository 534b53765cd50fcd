"""Target classes that can be saved to a file, so that all models of a comparison are attacked with the same targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import targets as drawn
from ..data.dataset import Dataset, content_hash
from ..utils.errors import InputError
from ..utils.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Targets:
    """A target class for each image of a data set.

    Attributes:
        rows: (id, label, target) of each image, ordered by id; no target equals its label.
        num_classes: number of classes; targets are 0 to num_classes - 1.
        data, images_sha256: name of the data set and hash of its images.
        seed: seed that the targets were drawn with; None if they were not drawn.

    Raises:
        InputError: a target is its image's label or outside the classes, or an id appears twice.
    """

    rows: tuple[tuple[int, int, int], ...]
    num_classes: int
    data: str
    images_sha256: str
    seed: int | None

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("targets: empty; give (id, label, target) for each image")
        ids, labels, chosen = torch.tensor(self.rows).unbind(1)
        drawn.check_targets(chosen, labels, self.num_classes, ids=ids)
        for id_, label, _ in self.rows:
            if not (0 <= label < self.num_classes and id_ >= 0):
                raise InputError(
                    f"label {label} of image {id_}: labels must be 0 to {self.num_classes - 1}, ids 0 or more"
                )
        if len({row[0] for row in self.rows}) < len(self.rows):
            raise InputError("targets: an id appears twice; give one target for each image")
        object.__setattr__(self, "rows", tuple(sorted(self.rows)))

    def of(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the targets of these images, int64 [N], on the device of ``labels``.

        Args:
            ids, labels: int64 [N].

        Raises:
            InputError: an image has no target, or its target was chosen for another label.
        """
        known, out = self._by_id, []
        for id_, label in zip(ids.tolist(), labels.tolist(), strict=True):
            if id_ not in known:
                missing = sum(other not in known for other in ids.tolist())
                raise InputError(f"no target for image {id_} ({missing} of {len(ids)} have none): give targets for all")
            if known[id_][0] != label:
                raise InputError(
                    f"the target of image {id_} was chosen for label {known[id_][0]}, but its label is {label}: the "
                    "targets belong to other images"
                )
            out.append(known[id_][1])
        return torch.tensor(out, dtype=torch.int64, device=labels.device)

    @cached_property
    def _by_id(self) -> dict[int, tuple[int, int]]:
        return {id_: (label, target) for id_, label, target in self.rows}

    @property
    def sha256(self) -> str:
        return targets_hash((id_, target) for id_, _, target in self.rows)

    def save(self, path: str | Path) -> None:
        """Write the targets as JSON, atomically; ``load_targets`` reads them."""
        record = {
            "schema": 1,
            "data": self.data,
            "images_sha256": self.images_sha256,
            "seed": self.seed,
            "num_classes": self.num_classes,
            "targets_sha256": self.sha256,
            "columns": ["id", "label", "target"],
        }
        rows = ",\n    ".join(json.dumps(row) for row in self.rows)  # one per line, for readers and version control
        head = json.dumps(record, indent=2).removesuffix("\n}")
        write_atomic(Path(path), f'{head},\n  "targets": [\n    {rows}\n  ]\n}}\n'.encode())


def targets_hash(pairs: Iterable[tuple[int, int]]) -> str:
    """Return the SHA-256, in hex, of the lines "id target", ordered by id."""
    return hashlib.sha256("".join(f"{id_} {target}\n" for id_, target in sorted(pairs)).encode()).hexdigest()


def draw_targets(data: Dataset, *, seed: int = 0) -> Targets:
    """Draw the targets that ``evaluate`` draws with this seed, uniformly from the wrong classes."""
    chosen = drawn.uniform(data.labels, data.ids, data.num_classes, seed=seed)
    return Targets(
        rows=tuple(zip(data.ids.tolist(), data.labels.tolist(), chosen.tolist(), strict=True)),
        num_classes=data.num_classes,
        data=data.name,
        images_sha256=content_hash(data),
        seed=seed,
    )


def load_targets(path: str | Path) -> Targets:
    """Load targets that ``Targets.save`` wrote.

    Raises:
        InputError: the file is missing, damaged or of another kind, or the targets do not match ``targets_sha256``,
            which must be removed from a file that is edited.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"targets {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    try:
        targets = Targets(
            rows=tuple((_whole(id_), _whole(label), _whole(target)) for id_, label, target in record["targets"]),
            num_classes=_whole(record["num_classes"]),
            data=str(record["data"]),
            images_sha256=str(record["images_sha256"]),
            seed=record["seed"],
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a file of targets as robust-lr saves them: {type(error).__name__}: {error}"
        ) from None
    if record.get("targets_sha256", targets.sha256) != targets.sha256:
        raise InputError(f"{path} was changed after it was saved: if on purpose, remove its targets_sha256")
    return targets


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise TypeError(f"{value!r} is not a 64-bit integer")
    return value
