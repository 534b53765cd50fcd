"""The harness: model x data x protocol -> Result, one ledger row an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attacks.targets import check_classes
from .bench import Bench
from .checkpoint import weights_hash
from .contexts import device_of, fp32, frozen
from .counts import summarize
from .dataset import Batch, Dataset, content_hash
from .errors import InputError
from .guards import SAMPLE, check_pixels, guard
from .images import known, ledger_rows
from .kinds import PGD
from .ledger import Ledger, remove
from .library import attack_stream, keyed
from .loader import batches
from .perturb import attackable
from .precision import check_precision, lowered
from .protocols import get as get_protocol
from .provenance import device_name, versions
from .results import Result, write_json
from .rows import Rows, size
from .standard import Cascade, Part, Protocol
from .targets import Targets, targets_hash

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
    fresh: bool = False,
    shard: tuple[int, int] | None = None,
    targets: Targets | None = None,
    name: str | None = None,
    workers: int = 0,
    precision: str = "fp32",
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
        protocol: a name of ``protocols.PROTOCOLS``, or a PGD, APGD, Square, Library or Cascade of that module.
        seed: of starts and targets, 0 to 2^32 - 1.
        batch_size: images that are loaded at a time.
        compute_batch: rows of every pass of the model: images that are attacked, and written to the ledger, at a time.
            The last ones are padded. By default 64 on a CPU; 0, the default on other devices, pads nothing and takes at
            most ``batch_size`` rows.
        out: folder for ``ledger.sqlite`` and ``result.json``; by default nothing is written.
        resume: go on with the evaluation in ``out``; one of another configuration is refused.
        fresh: begin anew, whatever evaluation is in ``out``.
        shard: (i, n): only every n-th image, from the i-th on, 1 <= i <= n.
        targets: of a targeted protocol, instead of those that it would choose.
        name: of the model, for the result.
        workers: processes that load images.
        precision: of the passes that the attack makes, "fp32", "tf32" (on CUDA) or "bf16"; verdicts are always fp32. A
            lower precision must first give the verdicts of fp32 for 95 % of a sample of 64 images.
        allow: names of ``guards.GUARDS`` that are not to be asked.
        progress: called as ``progress(done, total)`` whenever images are done.

    Raises:
        InputError: unknown protocol, images outside [0, 1], a guard's complaint, a used ``out`` folder.
        RunError: predictions that are not finite, an attack that left the ball or [0, 1], or a precision whose verdicts
            differ too much from those of fp32.
    """
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    if protocol.targeted:
        check_classes(data.num_classes)
    protocol = with_targets(protocol, targets)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed = {seed}: must be between 0 and 2^32 - 1")
    for option, value, least in (("batch_size", batch_size, 1), ("compute_batch", compute_batch or 0, 0)):
        if value < least:
            raise InputError(f"{option} = {value}: must be at least {least}")
    device = device_of(model)
    if compute_batch is None:
        compute_batch = COMPUTE_BATCH if device.type == "cpu" else 0
    parts = parts_of(protocol)
    check_precision(precision, device)
    positions = _sharded(_chosen(data, protocol), shard)
    name = name or type(model).__name__
    hashes = {"weights": weights_hash(model), "images": content_hash(data)}
    configuration: dict[str, Any] = {
        "schema": SCHEMA,
        "model": name,
        "data": data.name,
        "classes": data.num_classes,
        "architecture": hashlib.sha256(repr(model).encode()).hexdigest(),
        "device": device.type,
        **{f"version of {key}": value for key, value in versions().items()},
        **{f"protocol.{key}": value for key, value in protocol.values().items() if key != "source"},
        "seed": seed,
        "images": len(positions),
        "shard": None if shard is None else f"{shard[0]}/{shard[1]}",
        "compute_batch": compute_batch,
        "precision": precision,
        **{f"{key}_sha256": value for key, value in hashes.items()},
    }
    if targets is not None:
        chosen = targets.of(data.ids, data.labels)  # all of them: shards of one evaluation agree
        configuration["targets_sha256"] = targets_hash(zip(data.ids.tolist(), chosen.tolist(), strict=True))
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
    if folder is not None and fresh:
        remove(folder / LEDGER)
    with closing(Ledger(None if folder is None else folder / LEDGER, configuration, resume=resume)) as ledger:
        done = ledger.ids()
        todo = positions[[id_ not in done for id_ in data.ids[positions].tolist()]]
        finished = len(done)
        if folder is not None and len(todo):
            (folder / RESULT).unlink(missing_ok=True)  # it was another evaluation's
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
            agreement = None
            if precision != "fp32":
                sample = [data.batch(spaced(positions, SAMPLE))]
                bench, agreement = lowered(
                    bench, precision, device, lambda b: attack_all(sample, protocol, b, device, targets)
                )
            loaded = batches(data, torch.split(todo, batch_size), workers=workers)
            for group in attack_all(loaded, protocol, bench, device, targets):
                ledger.add(ledger_rows(group, protocol, [part.name for part in parts]))
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
        batch_invariant=bool(compute_batch) and all(keyed(part) for part in parts),
        hashes=hashes,
        device=device_name(device),
        precision=precision,
        agreement=agreement,
    )
    if folder is not None:
        write_json(folder / RESULT, result.to_dict())
    return result


def attack_all(
    batches: Iterable[Batch], protocol: Protocol, bench: Bench, device: torch.device, targets: Targets | None
) -> Iterator[Rows]:
    """Rows of all images once they are decided, in any order."""
    decided = known(batches, protocol, bench, device, targets)
    for number, part in enumerate(parts_of(protocol)):
        decided = attack_stream(part, number, decided, bench)
    return decided


def parts_of(protocol: Protocol) -> tuple[Part, ...]:
    return protocol.parts if isinstance(protocol, Cascade) else (protocol,)


def _chosen(data: Dataset, protocol: Protocol) -> Tensor:
    """Positions of the images that the protocol is for: all, or those with the smallest ids."""
    first = protocol.first if isinstance(protocol, Cascade) else 0
    return data.ids.argsort()[:first].sort().values if first else torch.arange(len(data))


def _sharded(positions: Tensor, shard: tuple[int, int] | None) -> Tensor:
    index, count = shard or (1, 1)
    n = len(positions)
    if not 1 <= index <= count <= n:
        raise InputError(f"shard {index}/{count}: i/n with 1 <= i <= n <= {n} (the number of images) is needed")
    return positions[index - 1 :: count]


def spaced(positions: Tensor, n: int) -> Tensor:
    """At most ``n`` of the positions, evenly spaced: folders are sorted by class."""
    n = min(n, len(positions))
    return positions[torch.arange(n) * len(positions) // n]


def with_targets(protocol: Protocol, targets: Targets | None) -> Protocol:
    """``protocol``, which says that targets are given if they are; InputError where they have no place, or lack."""
    if targets is None:
        if isinstance(protocol, PGD) and protocol.targeted and protocol.target == "given":
            raise InputError("target = 'given': give the targets as well (--targets FILE)")
        return protocol
    if not isinstance(protocol, PGD) or not protocol.targeted:
        raise InputError(f"protocol {protocol.name!r} aims at no given class: leave the targets out")
    return replace(protocol, target="given")
