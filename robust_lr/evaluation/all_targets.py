"""Attack every image towards every wrong class: one evaluation per shift, and a matrix of class by target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Dataset, content_hash
from ..protocols.base import Protocol
from ..results.target_matrix import MATRIX, TargetMatrix, build_matrix
from ..results.targets import Targets
from ..utils.errors import InputError
from ..utils.files import write_json
from .harness import evaluate_prepared, resolve_protocol
from .session import prepare

#: maximum number of classes; each class takes one more evaluation, and more than this is surely a mistake
MAX_CLASSES = 200


def attack_all_targets(
    model: nn.Module,
    data: Dataset,
    protocol: str | Protocol,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> TargetMatrix:
    """Attack every image once for each wrong class, and count by class and target; ``out`` gets a folder for each.

    In the k-th evaluation an image of class y is pushed to class y + k, so each is an ordinary evaluation, which is
    verified, recorded and resumed separately.

    Args:
        protocol: a targeted protocol.
        out: folder for the evaluation of each shift, and for ``matrix.json``.
        resume, fresh, images, progress, options: arguments of ``evaluate``, except ``shard``.

    Raises:
        InputError: an untargeted protocol, too many classes, or as ``evaluate``.
        RunError: as ``evaluate``.
    """
    if options.get("shard") is not None:
        raise InputError("shard: a matrix of all targets needs all images; leave it out")
    chosen = resolve_protocol(protocol) if isinstance(protocol, str) or not protocol.needs_targets else protocol
    if not chosen.targeted:
        raise InputError(
            f"protocol {chosen.name!r} is untargeted: all targets need a targeted one, e.g. lrnet-targeted"
        )
    given = chosen.with_given_targets()
    ready = prepare(model, data, [given], **options)
    classes = ready.bench.num_classes
    if classes > MAX_CLASSES:
        raise InputError(f"all targets of {classes} classes: at most {MAX_CLASSES} classes are allowed")
    about: dict[str, Any] = {"num_classes": classes, "data": ready.data.name, "seed": None}
    about["images_sha256"] = content_hash(ready.data)
    if out is not None:
        (Path(out) / MATRIX).unlink(missing_ok=True)
    runs = []
    for shift in range(1, classes):
        pairs = zip(ready.data.ids.tolist(), ready.data.labels.tolist(), strict=True)
        targets = Targets(rows=tuple((id_, label, (label + shift) % classes) for id_, label in pairs), **about)
        folder = None if out is None else Path(out) / f"shift-{shift}"
        _, rows = evaluate_prepared(
            ready, given, out=folder, resume=resume, fresh=fresh, images=images, targets=targets, progress=progress
        )
        runs.append(rows)
    matrix = build_matrix(runs, classes, model=ready.name, data=ready.data.name, protocol=given.values())
    if out is not None:
        write_json(Path(out) / MATRIX, matrix.to_dict())
    return matrix
