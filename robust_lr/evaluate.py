"""The harness: model x data x protocol -> Result, one ledger row an image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attacks.targets import check_classes
from .bench import Bench
from .checkpoint import weights_hash
from .contexts import fp32, frozen
from .dataset import Dataset, content_hash
from .errors import InputError
from .guards import SAMPLE, check_pixels, guard
from .images import known, ledger_rows
from .ledger import Ledger, Row
from .loader import batches
from .perturb import attackable
from .pool import attack_pool
from .protocols import Protocol
from .protocols import get as get_protocol
from .provenance import device_name, versions
from .results import Proportion, Result, write_json
from .rows import size

#: rows of every forward pass on a CPU, where libraries round differently for other batch shapes
COMPUTE_BATCH = 64

#: steps between looks at which images are decided, on devices where a look makes the host wait
PATIENCE = 4

#: of the ledger's columns
SCHEMA = 2

LEDGER, RESULT = "ledger.sqlite", "result.json"


def evaluate(
    model: nn.Module,
    data: Dataset,
    protocol: str | Protocol,
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
        batch_size: images that are loaded at a time.
        compute_batch: rows of every pass of the model: images that are attacked, and written to the ledger, at a time.
            The last ones are padded. By default 64 on a CPU; 0, the default on other devices, pads nothing and takes at
            most ``batch_size`` rows.
        out: folder for ``ledger.sqlite`` and ``result.json``; by default nothing is written.
        resume: go on with the evaluation in ``out``; one of another configuration is refused.
        shard: (i, n): only every n-th image, from the i-th on, 1 <= i <= n.
        name: of the model, for the result.
        workers: processes that load images.
        allow: names of ``guards.GUARDS`` that are not to be asked.
        progress: called as ``progress(done, total)`` whenever images are done.

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
        "schema": SCHEMA,
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
            bench = Bench(
                model=model,
                attacked=attackable(model),
                num_classes=num_classes,
                seed=seed,
                rows=compute_batch or batch_size,
                fixed=bool(compute_batch),
                patience=1 if device.type == "cpu" else PATIENCE,
                precision=nullcontext,
            )
            loaded = batches(data, torch.split(todo, batch_size) if len(todo) else [], workers=workers)
            decided = attack_pool(protocol, 0, known(loaded, protocol, bench, device), bench)
            for group in decided:
                ledger.add(ledger_rows(group, protocol, [protocol.name]))
                finished += size(group)
                if progress is not None:
                    progress(finished, len(positions))
        rows = ledger.rows()
    result = summarize(
        rows,
        protocol,
        model=name,
        data=data.name,
        seed=seed,
        shard=configuration["shard"],
        batch_invariant=bool(compute_batch),
        hashes={**hashes, **targets_hash(rows)},
        device=device_name(device),
        precision="fp32",
        agreement=None,
    )
    if folder is not None:
        write_json(folder / RESULT, result.to_dict())
    return result


def _sharded(n: int, shard: tuple[int, int] | None) -> Tensor:
    index, count = shard or (1, 1)
    if not 1 <= index <= count <= n:
        raise InputError(f"shard {index}/{count}: i/n with 1 <= i <= n <= {n} (the number of images) is needed")
    return torch.arange(index - 1, n, count)


def spaced(positions: Tensor, n: int) -> Tensor:
    """At most ``n`` of the positions, evenly spaced: folders are sorted by class."""
    n = min(n, len(positions))
    return positions[torch.arange(n) * len(positions) // n]


def summarize(rows: Sequence[Row], protocol: Protocol, **about: Any) -> Result:
    """Count rows. Success has its own denominator: images on which the attack was not there before it began."""
    n = len(rows)
    open_rows = [row for row in rows if (row.clean != row.target if protocol.targeted else row.clean == row.label)]
    robust = Proportion(sum(row.robust for row in rows), n)
    return Result(
        protocol=protocol.values(),
        n=n,
        attacked=n if protocol.criterion == "last" else len(open_rows),
        clean=Proportion(sum(row.clean == row.label for row in rows), n),
        robust=robust,
        robust_last=robust if protocol.criterion == "last" else None,
        robust_worst_seen=Proportion(sum(row.robust_worst_seen for row in rows), n),
        success=Proportion(sum(row.success for row in open_rows), len(open_rows)),
        curve=[point(rows, open_rows, protocol, number) for number in range(len(protocol.record))],
        broken_by=dict(Counter(row.broken_by for row in rows if row.broken_by is not None)),
        max_distance=max(row.distance for row in rows),
        versions=versions(),
        seconds=sum(row.seconds for row in rows),
        forwards=sum(row.forwards for row in rows),
        backwards=sum(row.backwards for row in rows),
        **about,
    )


def point(rows: Sequence[Row], open_rows: Sequence[Row], protocol: Protocol, number: int) -> dict[str, Any]:
    """The figures at one of the protocol's recorded steps; an image broken within them stays broken in worst seen."""
    steps, last = protocol.record[number], protocol.criterion == "last"
    won = "t" if protocol.targeted else "w"
    figures = {
        "robust_accuracy_last": (sum(row.record[number] == "r" for row in rows), rows) if last else None,
        "robust_accuracy_worst_seen": (sum(not within(row.first_wrong, steps) for row in rows), rows),
        "attack_success": (
            sum(row.record[number] == won if last else within(row.first_success, steps) for row in open_rows),
            open_rows,
        ),
    }
    shares = {name: Proportion(figure[0], len(figure[1])) for name, figure in figures.items() if figure is not None}
    return {
        "steps": steps,
        **{name: shares[name].value if name in shares else None for name in figures},
        "intervals": {name: list(share.interval) for name, share in shares.items()},
        "denominators": {name: share.n for name, share in shares.items()},
    }


def within(step: int | None, steps: int) -> bool:
    return step is not None and step <= steps


def targets_hash(rows: Sequence[Row]) -> dict[str, str]:
    """SHA-256 of the lines "id target", by id; nothing where no image has a target."""
    lines = "".join(f"{row.id} {row.target}\n" for row in rows if row.target is not None)
    return {"targets": hashlib.sha256(lines.encode()).hexdigest()} if lines else {}
