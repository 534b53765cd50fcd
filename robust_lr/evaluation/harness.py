"""The harness: evaluate a model on data under a protocol; one ledger row per image, and a Result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.targets import check_targets
from ..data.dataset import Batch, evenly_spaced, to_unit_range
from ..data.loader import batches
from ..protocols.base import Protocol, StepwiseProtocol
from ..protocols.custom import Attack, Custom
from ..protocols.presets import get as get_protocol
from ..protocols.torchattacks import Library
from ..results.images import IMAGES, gather, remove_images, round_to_levels, write_part
from ..results.ledger import Ledger, Row, remove
from ..results.result import Result
from ..results.stored import LEDGER, RESULT
from ..results.summary import summarize
from ..results.targets import Targets, targets_hash
from ..results.verdict import Probes, probes_finding
from ..utils.contexts import fp32, frozen
from ..utils.errors import InputError, RunError
from ..utils.files import write_json
from ..utils.processes import parallel
from ..utils.progress import ProgressLine
from ..utils.provenance import device_name, origin, versions
from ..utils.statistics import Proportion
from .batch_state import Rows, add_elapsed_time, join, ledger_rows, size, split_first
from .border import attack_near_again
from .clean_pass import classify_clean_images
from .continuous_batching import attack_pool
from .custom_attacks import attack_custom
from .guards import SAMPLE
from .library_attacks import attack_library
from .model_under_test import Bench
from .precision import count_agreement, lower_precision
from .probes import probe
from .randomness import VERDICT_PASSES
from .session import Prepared, prepare

#: version of the ledger's columns
SCHEMA = 4


def evaluate(
    model: nn.Module,
    data: Any,
    protocol: str | Protocol | Attack,
    *,
    eps: float | str | None = None,
    norm: str = "linf",
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
    processes: int | None = None,
    precision: str = "fp32",
    check: str | None = None,
    allow: Collection[str] = (),
    end_at_cycles: bool = True,
    verdict_passes: int = VERDICT_PASSES,
    surrogate: nn.Module | None = None,
    images: bool = False,
    progress: Callable[[int, int], None] | bool | None = None,
    on_rows: Callable[[Sequence[Row]], None] | None = None,
) -> Result:
    """Attack ``model`` on every image of ``data`` and count what survives.

    Starts are functions of (seed, image id, restart) and targets of (seed, image id): they do not depend on batch size,
    order or shard. All restarts share the same targets, so more restarts never lower the success rate. With a fixed
    ``compute_batch`` the arithmetic does not depend on batch size, order or shard either, and the result says so.

    Args:
        model: pixels [N, C, H, W] in [0, 1] -> logits [N, data.num_classes], on the device to use. It is evaluated in
            eval mode; its mode, flags and gradients are restored afterwards.
        data: images, labels and ids: a data set of this package, tensors (images, labels), a PyTorch ``Dataset``,
            ``Subset`` or ``DataLoader``, or rows of Hugging Face ``datasets``; see ``data.adapters.as_dataset``.
        protocol: a name of ``protocols.PROTOCOLS``, a PGD, APGD, Square, Library, Custom or Cascade of that module, or
            a callable (model, x, labels, targets) -> x_adv.
        eps, norm: the ball of an attack that is given as a callable.
        seed: seed of starts and targets, 0 to 2^32 - 1.
        batch_size: number of images that are loaded at a time.
        compute_batch: number of rows in every pass of the model, that is, of images that are attacked, and written to
            the ledger, at a time; the last passes are padded. The default on a CPU is 64, fewer for few images and for
            images of more than 64 x 64 pixels; 0, the default on other devices, pads nothing and takes at most
            ``batch_size`` rows.
        out: folder for ``ledger.sqlite`` and ``result.json``; by default nothing is written.
        resume: continue the evaluation in ``out``; an evaluation with another configuration is refused.
        fresh: start over, discarding any evaluation in ``out``.
        shard: (i, n): only every n-th image, starting from the i-th, 1 <= i <= n.
        targets: targets for a targeted protocol, instead of those that it would choose.
        name: name of the model in the result.
        workers: number of processes that load images.
        processes: number of processes that attack images on a CPU, each with one thread; at most one for every
            ``compute_batch`` images. The default is one for each thread that PyTorch would use
            (``torch.get_num_threads()``). Rows do not depend on it. Under torchrun, in daemons, with a GPU, outside
            Linux, and for attacks on whole batches there is a single process, which uses PyTorch's threads.
        precision: precision of the attack's passes, "fp32", "tf32" (on CUDA) or "bf16". A lower precision must first
            agree with the verdicts of fp32 on 95 % of a sample of 64 images. Finished images are always judged in fp32,
            and those near the border (see ``evaluation.border``) are attacked again in fp32. Earlier iterates are
            judged by the attack's own passes, and so are curves and mistakes that count only under worst-seen.
        check: how thoroughly the number is probed: "default" (at most a tenth of the passes, or a few seconds),
            "thorough" (eight times as much) or "off", which leaves the verdict None.
        allow: names of ``guards.GUARDS`` to skip.
        end_at_cycles: stop computing steps for an image once its iterates repeat exactly; rows are the same except for
            the passes. The result says whether that was possible, and for how many images.
        verdict_passes: number of passes of a random model over each judged image, which is robust only if all of them
            are right. Such a model needs a protocol whose gradients are averaged over ``eot`` passes.
        surrogate: another network, on the same device, that gradients are taken through (a transfer attack). Last
            iterates are judged by ``model``.
        images: save the image behind each verdict in ``out``, in float32 and rounded to 256 levels, for ``score`` and
            ``transfer``; the result then includes the accuracy after rounding.
        progress: called as ``progress(done, total)`` whenever images are done; True prints a line on stderr, for
            scripts and notebooks.
        on_rows: called with the rows of the ledger as they are written, first with those that it already holds.

    Raises:
        InputError: unknown protocol, images outside [0, 1], a guard's complaint, an ``out`` folder already in use.
        RunError: predictions that are not finite, an attack that left the ball or [0, 1], a precision whose verdicts
            differ too much from those of fp32, or passes that do not fit in a GPU's memory.
    """
    protocol = resolve_protocol(with_ball(protocol, eps, norm, targeted=targets is not None), targets)
    ready = prepare(
        model,
        data,
        [protocol],
        seed=seed,
        batch_size=batch_size,
        compute_batch=compute_batch,
        shard=shard,
        name=name,
        workers=workers,
        processes=processes,
        precision=precision,
        check=check,
        allow=allow,
        end_at_cycles=end_at_cycles,
        verdict_passes=verdict_passes,
        surrogate=surrogate,
    )
    if progress is True:
        line = ProgressLine(ready.name)
        progress, on_rows = line, line.add_rows if on_rows is None else on_rows
    return evaluate_prepared(
        ready,
        protocol,
        out=out,
        resume=resume,
        fresh=fresh,
        targets=targets,
        images=images,
        progress=progress or None,
        on_rows=on_rows,
    )[0]


def evaluate_prepared(
    ready: Prepared,
    protocol: Protocol,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    targets: Targets | None = None,
    images: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_rows: Callable[[Sequence[Row]], None] | None = None,
) -> tuple[Result, list[Row]]:
    """Run one evaluation on a prepared model; return its result, and its rows by id. Arguments as in ``evaluate``."""
    bench, data, device = ready.bench, ready.data, ready.device
    positions, parts = ready.select_positions(protocol), protocol.attacks()
    about = describe_configuration(ready, protocol, targets) | {"saved_images": images}
    folder = None if out is None else Path(out)
    if images and folder is None:
        raise InputError("`images` are saved in a folder: give `out` as well")
    if folder is not None and fresh:
        remove(folder / LEDGER)
        remove_images(folder / IMAGES)
    with (
        closing(Ledger(None if folder is None else folder / LEDGER, about, resume=resume)) as ledger,
        ledger.removed_if_it_fails(),
    ):
        done = ledger.ids()
        check_behavior(ledger, ready)
        todo = positions[[id_ not in done for id_ in data.ids[positions].tolist()]]
        finished = len(done)
        if folder is not None and len(todo):
            (folder / RESULT).unlink(missing_ok=True)  # left from another evaluation
        if on_rows is not None and done:
            on_rows(ledger.rows())
        if progress is not None:
            progress(finished, len(positions))
        agreement, border = None, None
        with frozen(ready.model), frozen(ready.surrogate or nn.Identity()), fp32(device):
            if ready.precision != "fp32":
                whole = replace(ready, shard=None).select_positions(protocol)  # shards have the same border
                sample = [data.batch(whole[evenly_spaced(len(whole), SAMPLE)])]
                low = lower_precision(bench, ready.precision, device)
                counted, border = ledger.recall("agreement"), ledger.recall("border")
                if border is None and (len(todo) or counted is None):
                    *fresh_count, border = count_agreement(
                        bench,
                        ready.precision,
                        low,
                        protocol,
                        lambda b: attack_all(sample, protocol, b, device, targets),
                    )
                    ledger.remember("border", border)
                    if counted is None:
                        ledger.remember("agreement", counted := fresh_count)
                bench, agreement = low, Proportion(*counted)
            processes = ready.processes if protocol.is_keyed_by_image else 0
            loads = divide_images(todo, min(ready.batch_size, bench.rows), processes)
            active = max(1, min(processes, len(loads)))

            def attack_in_fp32(rows: Rows) -> Iterator[Rows]:
                batch = rows["x"].cpu(), rows["label"].cpu(), rows["id"].cpu()
                return attack_all([batch], protocol, replace(ready.bench, keep_images=images), device, targets)

            def finish(order: Iterator[Tensor]) -> Iterator[list[Row]]:
                loaded = batches(data, order, workers=-(-ready.workers // active))
                groups = attack_all(loaded, protocol, replace(bench, keep_images=images), device, targets)
                if border is not None:
                    groups = attack_near_again(groups, protocol, border, bench.rows, attack_in_fp32)
                for group in judge_rounded(groups, bench) if images else groups:
                    if (
                        images and folder is not None
                    ):  # before the ledger, so that each of its rows has an image on disk
                        write_part(folder / IMAGES, *(group[name].cpu() for name in ("id", "label", "finished")))
                    yield [
                        replace(row, seconds=row.seconds / active)
                        for row in ledger_rows(group, protocol, [part.name for part in parts])
                    ]

            with memory_errors(bench.rows), closing(parallel(finish, loads, processes)) as groups:
                for written in groups:
                    ledger.add(written)
                    finished += len(written)
                    if on_rows is not None:
                        on_rows(written)
                    if progress is not None:
                        progress(finished, len(positions))
            rows = ledger.rows()
            if images and folder is not None:
                gather([folder / IMAGES], folder / IMAGES, (row.id for row in rows))
            if bench.randomness is not None or bench.surrogate is not None:
                found = None  # probes are for white-box attacks on deterministic models
            elif (kept := ledger.recall(probes_finding(ready.check))) is None:
                found = probe(
                    ready.bench,
                    ready.pristine,
                    data,
                    protocol,
                    rows,
                    resolution=torch.finfo(getattr(torch, ready.logits_dtype)).eps,
                    level=ready.check,
                    processes=ready.processes,
                )
                if found is not None:
                    ledger.remember(probes_finding(ready.check), found.to_json())
            else:
                found = Probes.from_json(kept)
        if (made := ledger.recall("origin")) is None:
            made = origin()
            ledger.remember("origin", made)
    result = summarize(
        rows,
        protocol,
        model=ready.name,
        data=data.name,
        seed=bench.seed,
        shard=about["shard"],
        batch_invariant=bench.fixed and bench.places and bench.is_keyed and protocol.is_keyed_by_image,
        hashes=ready.hashes,
        device=device_name(device),
        precision=ready.precision,
        agreement=agreement,
        logits_dtype=ready.logits_dtype,
        model_output=ready.output,
        probes=found,
        origin=made,
        read_from_ledger=len(done),
        cycle_detection=bench.cycles,
        randomness=bench.randomness,
        surrogate=bench.surrogate,
    )
    if folder is not None:
        write_json(folder / RESULT, result.to_dict())
    return result, rows


def divide_images(positions: Tensor, size: int, processes: int) -> Sequence[Tensor]:
    """Divide images into groups of at most ``size`` that are loaded together, if possible equally many per process."""
    count = -(-len(positions) // size)
    if not 1 < processes < count:
        return torch.split(positions, size)
    return torch.tensor_split(positions, -(-count // processes) * processes)


#: share of the largest logit by which a model's logits may have changed since its evaluation began, if the number of
#: threads or of rows differs
MAX_CHANGE = 1e-4


def check_behavior(ledger: Ledger, ready: Prepared) -> None:
    """Raise InputError unless the model's logits are those from when the evaluation in ``ledger`` began.

    They must be equal to the bit if passes have a fixed number of rows and the number of threads is the same, otherwise
    up to rounding.
    """
    if not ready.bench.is_keyed:
        return  # a model that draws from a generator of its own
    now, threads = ready.behavior, torch.get_num_threads()
    if (kept := ledger.recall("behavior")) is None:
        ledger.remember("behavior", {"logits": now.tolist(), "threads": threads})
        return
    before = torch.tensor(kept["logits"], dtype=now.dtype, device=now.device)
    exact = ready.bench.fixed and threads == kept["threads"]
    apart = float((now - before).abs().max()) if now.shape == before.shape else float("inf")
    if apart > (0 if exact else MAX_CHANGE * float(before.abs().max())):
        raise InputError(
            f"{ledger.path} holds another evaluation: the model's logits have changed since it began, by {apart:.3g}; "
            "start afresh (`fresh`), or choose another folder (`out`)"
        )


@contextmanager
def memory_errors(rows: int) -> Iterator[None]:
    """Turn a failure to allocate memory into a RunError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"passes of {rows} images do not fit: {reason}; rows written before are safe, continue with a smaller "
            "`batch_size`, or with fewer `processes`"
        ) from error


def describe_configuration(ready: Prepared, protocol: Protocol, targets: Targets | None) -> dict[str, Any]:
    """Return everything that the rows depend on; InputError for targets that do not fit."""
    bench, data = ready.bench, ready.data
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "model": ready.name,
        "data": data.name,
        "classes": bench.num_classes,
        "architecture": hashlib.sha256(repr(ready.model).encode()).hexdigest(),
        "device": ready.device.type,
        **{f"version of {key}": value for key, value in versions().items()},
        **{f"protocol.{key}": value for key, value in protocol.values().items() if key != "source"},
        "seed": bench.seed,
        "images": len(ready.select_positions(protocol)),
        "shard": None if ready.shard is None else f"{ready.shard[0]}/{ready.shard[1]}",
        "compute_batch": bench.rows if bench.fixed else 0,
        "precision": ready.precision,
        "cycle_detection": bench.cycles,
        "randomness": bench.randomness,
        "surrogate": bench.surrogate,
        **{f"{key}_sha256": value for key, value in ready.hashes.items()},
    }
    if ready.code is not None:
        about["code_sha256"] = ready.code
    if targets is not None:  # all of them: shards of one evaluation agree
        chosen = check_targets(targets.of(data.ids, data.labels), data.labels, bench.num_classes, ids=data.ids)
        about["targets_sha256"] = targets_hash(zip(data.ids.tolist(), chosen.tolist(), strict=True))
    return about


def judge_rounded(groups: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Judge finished images again after rounding them to 256 levels."""
    waiting: Rows = {}
    for group in chain(groups, [{}]):
        waiting = join([waiting, group])
        while size(waiting) >= bench.rows or (waiting and not group):
            rows, waiting = split_first(waiting, bench.rows)
            began = time.perf_counter()
            passes = bench.verdict_logits(
                to_unit_range(round_to_levels(rows["finished"])), rows["id"], rows["forwards"]
            )
            right = (passes.argmax(2) == rows["label"]).all(0)
            yield add_elapsed_time({**rows, "robust_rounded": right, "forwards": rows["forwards"] + len(passes)}, began)


def attack_all(
    batches: Iterable[Batch], protocol: Protocol, bench: Bench, device: torch.device, targets: Targets | None
) -> Iterator[Rows]:
    """Attack all images and yield their rows as they are decided, in any order."""
    decided = classify_clean_images(batches, protocol, bench, device, targets)
    for number, part in enumerate(protocol.attacks()):
        decided = attack_stream(part, number, decided, bench)
    return decided


def resolve_protocol(protocol: str | Protocol, targets: Targets | None = None) -> Protocol:
    """Look up a protocol, by name or as it is, and state whether its targets are given; errors as ``with_targets``."""
    return with_targets(get_protocol(protocol) if isinstance(protocol, str) else protocol, targets)


def with_ball(
    protocol: str | Protocol | Attack, eps: float | str | None, norm: str, *, targeted: bool
) -> str | Protocol:
    """Turn a callable into the protocol ``Custom`` in the ball of radius ``eps``; return a protocol as it is."""
    if isinstance(protocol, str | Protocol):
        if eps is not None:
            raise InputError("`eps` is for an attack that is a callable: a protocol has its own, see Protocol.at(eps)")
        return protocol
    if eps is None:
        raise InputError("an attack that is a callable needs the radius of its ball: give `eps`, e.g. 8/255")
    return Custom(function=protocol, eps=eps, norm=norm, targeted=targeted)  # type: ignore[arg-type]


def with_targets(protocol: Protocol, targets: Targets | None) -> Protocol:
    """Return ``protocol`` with given targets if there are any; InputError if it needs or allows no such targets."""
    if targets is None:
        if protocol.needs_targets:
            raise InputError("target = 'given': pass the `targets` as well")
        return protocol
    return protocol.with_given_targets()


def attack_stream(part: Protocol, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Attack the images of ``source`` that are undecided; see ``continuous_batching.attack_pool``."""
    if isinstance(part, StepwiseProtocol):
        return attack_pool(part, number, source, bench)
    if isinstance(part, Custom):
        return attack_custom(part, number, source, bench)
    assert isinstance(part, Library), f"no way to run {type(part).__name__}"
    return attack_library(part, number, source, bench)
