"""The harness: model x data x protocol -> Result, one ledger row an image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attacks.targets import check_classes
from .checkpoint import weights_hash
from .contexts import fp32, frozen
from .dataset import Dataset, content_hash
from .errors import InputError, RunError
from .guards import SAMPLE, check_finite, check_pixels, guard
from .ledger import Ledger, Row
from .loader import batches
from .perturb import Model, attackable, goals, perturb
from .protocols import PGD
from .protocols import get as get_protocol
from .provenance import device_name, versions
from .results import Proportion, Result, write_json

#: rounding of x + delta in fp32, in pixels of [0, 1]
TOLERANCE = 1e-6
#: rows of every forward pass on a CPU, where libraries round differently for other batch shapes
COMPUTE_BATCH = 64

LEDGER, RESULT = "ledger.sqlite", "result.json"


def evaluate(
    model: nn.Module,
    data: Dataset,
    protocol: str | PGD,
    *,
    seed: int = 0,
    batch_size: int = 64,
    compute_batch: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    name: str | None = None,
    workers: int = 0,
    allow: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Attack ``model`` on every image of ``data`` and count what survives.

    Starts are functions of (seed, image id, restart) and targets of (seed, image id): they do not depend on batch size,
    order or shard. Restarts share their targets, so that they never lower success.
    With a fixed ``compute_batch`` the arithmetic does not depend on them either, and the result says so.

    Args:
        model: pixels [N, C, H, W] in [0, 1] -> logits [N, data.num_classes], on the device to use. It is evaluated in
            eval mode; mode, flags and gradients are afterwards as before.
        data: images, labels and ids.
        protocol: a name of ``protocols.PROTOCOLS`` or a ``protocols.PGD``.
        seed: of starts and targets.
        batch_size: images that are loaded, and written to the ledger, at a time.
        compute_batch: rows of every forward pass; smaller batches are padded and larger ones split. By default 64 on a
            CPU; 0, the default on other devices, takes batches as they come.
        out: folder for ``ledger.sqlite`` and ``result.json``; by default nothing is written.
        resume: go on with the evaluation in ``out``; one of another configuration is refused.
        shard: (i, n): only every n-th image, from the i-th on, 1 <= i <= n.
        name: of the model, for the result.
        workers: processes that load images.
        allow: names of ``guards.GUARDS`` that are not to be asked.
        progress: called as ``progress(done, total)`` after every batch.

    Raises:
        InputError: unknown protocol, images outside [0, 1], a guard's complaint, a used ``out`` folder.
        RunError: predictions that are not finite, or an attack that left the ball or [0, 1].
    """
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    if protocol.targeted:
        check_classes(data.num_classes)
    for option, value, least in (("batch_size", batch_size, 1), ("compute_batch", compute_batch or 0, 0)):
        if value < least:
            raise InputError(f"{option} = {value}: must be at least {least}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if compute_batch is None:
        compute_batch = COMPUTE_BATCH if device.type == "cpu" else 0
    positions = _sharded(len(data), shard)
    name = name or type(model).__name__
    hashes = {"weights": weights_hash(model), "images": content_hash(data)}
    configuration: dict[str, Any] = {
        "model": name,
        "data": data.name,
        "architecture": hashlib.sha256(repr(model).encode()).hexdigest(),
        "device": device.type,
        **{f"version of {key}": value for key, value in versions().items()},
        **{f"protocol.{key}": value for key, value in protocol.values().items() if key != "source"},
        "seed": seed,
        "images": len(positions),
        "shard": None if shard is None else f"{shard[0]}/{shard[1]}",
        "compute_batch": compute_batch,
        **{f"{key}_sha256": value for key, value in hashes.items()},
    }
    with frozen(model), fp32(device):  # a model that does not fit is refused before anything is written
        images, labels, ids = data.batch(spaced(positions, min(SAMPLE, compute_batch or batch_size)))
        check_pixels(images, ids)
        num_classes = guard(
            model,
            *(t.to(device) for t in (images, labels, ids)),
            num_classes=data.num_classes,
            most=int(data.labels.max()),
            gradients=protocol.steps > 0,
            allow=allow,
        )
    folder = None if out is None else Path(out)
    with closing(Ledger(None if folder is None else folder / LEDGER, configuration, resume=resume)) as ledger:
        done = ledger.ids()
        todo = positions[[id_ not in done for id_ in data.ids[positions].tolist()]]
        finished = len(done)
        if progress is not None:
            progress(finished, len(positions))
        with frozen(model), fp32(device):
            attacked = attackable(model)
            for images, labels, ids in batches(
                data, torch.split(todo, batch_size) if len(todo) else [], workers=workers
            ):
                check_pixels(images, ids)
                parts = zip(*(torch.split(t, compute_batch or len(ids)) for t in (images, labels, ids)), strict=True)
                for part in parts:
                    x, y, key = (_padded(t, compute_batch).to(device) for t in part)
                    count = len(part[2])
                    ledger.add(attack_batch(model, attacked, x, y, key, protocol, num_classes, seed=seed, count=count))
                    finished += count
                if progress is not None:
                    progress(finished, len(positions))
        rows = ledger.rows()
    result = _summarize(
        rows,
        protocol,
        model=name,
        data=data.name,
        seed=seed,
        shard=configuration["shard"],
        batch_invariant=bool(compute_batch),
        hashes=hashes,
        device=device_name(device),
    )
    if folder is not None:
        write_json(folder / RESULT, result.to_dict())
    return result


def attack_batch(
    model: Model,
    attacked: Model,
    x: Tensor,
    labels: Tensor,
    ids: Tensor,
    protocol: PGD,
    num_classes: int,
    *,
    seed: int,
    count: int,
) -> list[Row]:
    """Attack one batch through ``attacked`` and judge it by ``model``, which computes the same function.

    The verdict comes from a forward pass of its own on the finished images, after these have been verified. Only the
    first ``count`` rows are images to report; what follows is padding.
    """
    began = time.perf_counter()
    clean = _predict(model, x, ids, num_classes)
    aims = goals(protocol, attacked, x, labels, ids, num_classes, seed=seed)

    def reached(predictions: Tensor) -> Tensor:
        return predictions == aims if protocol.targeted else predictions != labels

    robust = torch.ones_like(labels, dtype=torch.bool)
    worst_seen = clean == labels
    success = torch.zeros_like(robust)
    first = torch.full_like(labels, -1)
    adversarial = torch.full_like(labels, -1)
    distance = torch.zeros(len(labels), device=x.device)

    def observe(step: int, iterate: Tensor, logits: Tensor) -> None:
        predictions = logits.argmax(1)
        worst_seen.logical_and_(predictions == labels)
        first.copy_(torch.where((first < 0) & reached(predictions), step, first))

    for restart in range(protocol.restarts):
        x_adv = perturb(protocol, attacked, x, aims, ids, seed=seed, draw=restart, observe=observe)
        distance = torch.maximum(distance, _verified(x, x_adv, ids, protocol.eps))
        predictions = _predict(model, x_adv, ids, num_classes)
        worst_seen &= predictions == labels
        first = torch.where((first < 0) & reached(predictions), protocol.steps, first)
        adversarial = torch.where(robust, predictions, adversarial)
        robust &= predictions == labels
        success |= reached(predictions)

    columns = [
        c[:count].tolist()
        for c in (ids, labels, aims, clean, adversarial, robust, worst_seen, success, first, distance)
    ]
    seconds = (time.perf_counter() - began) / count
    return [
        Row(
            id=id_,
            label=label,
            goal=goal,
            clean=before,
            adversarial=after,
            robust=held,
            robust_worst_seen=held_throughout,
            success=won,
            first_success=None if won_at < 0 else won_at,
            distance=moved,
            seconds=seconds,
        )
        for id_, label, goal, before, after, held, held_throughout, won, won_at, moved in zip(*columns, strict=True)
    ]


def _predict(model: Model, x: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Predicted classes [N], of finite logits that fit the classes."""
    with torch.no_grad():
        logits = model(x)
    if logits.shape != (len(x), num_classes):
        raise InputError(
            f"the model returns {tuple(logits.shape)} for {len(x)} images; the data set has {num_classes} classes, "
            f"so logits [{len(x)}, {num_classes}] are needed"
        )
    check_finite(logits, ids)
    return logits.argmax(1)


def _verified(x: Tensor, x_adv: Tensor, ids: Tensor, eps: float) -> Tensor:
    """Distances |x_adv - x| [N], once it is sure that none exceeds eps and every pixel is in [0, 1]."""
    distance = (x_adv - x).abs().flatten(1).amax(1)
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # False for NaN too
    wrong = ~inside | ~(distance <= eps + TOLERANCE)
    if wrong.any():
        raise RunError(
            f"the attack left its bounds on image {int(ids[wrong][0])}: distance {float(distance[wrong][0]):.6g}, "
            f"eps {eps:.6g}; are the model's gradients finite?"
        )
    return distance


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """``tensor`` with its first row repeated behind it until it has ``rows`` rows."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor


def _sharded(n: int, shard: tuple[int, int] | None) -> Tensor:
    index, count = shard or (1, 1)
    if not 1 <= index <= count <= n:
        raise InputError(f"shard {index}/{count}: i/n with 1 <= i <= n <= {n} (the number of images) is needed")
    return torch.arange(index - 1, n, count)


def spaced(positions: Tensor, n: int) -> Tensor:
    """At most ``n`` of the positions, evenly spaced: folders are sorted by class."""
    n = min(n, len(positions))
    return positions[torch.arange(n) * len(positions) // n]


def _summarize(rows: Sequence[Row], protocol: PGD, **about: Any) -> Result:
    """Count rows. Success has its own denominator: images on which the attack was not there before it began."""
    n = len(rows)
    open_rows = [row for row in rows if (row.clean != row.goal if protocol.targeted else row.clean == row.label)]
    return Result(
        protocol=protocol.values(),
        n=n,
        clean=Proportion(sum(row.clean == row.label for row in rows), n),
        robust=Proportion(sum(row.robust for row in rows), n),
        robust_worst_seen=Proportion(sum(row.robust_worst_seen for row in rows), n),
        success=Proportion(sum(row.success for row in open_rows), len(open_rows)),
        max_distance=max(row.distance for row in rows),
        versions=versions(),
        seconds=sum(row.seconds for row in rows),
        precision="fp32",
        gradients=n * protocol.steps * protocol.restarts,
        **about,
    )
