"""Prepare a model and images for evaluations, which share the checks of options, the hashes and the guards."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.arguments import check_images
from ..attacks.targets import check_classes
from ..data.adapters import as_dataset
from ..data.dataset import Dataset, content_hash, evenly_spaced
from ..data.selection import draw_balanced
from ..models.checkpoint import weights_hash
from ..models.external import code_hash
from ..models.folding import make_attackable, pack_weights
from ..models.outputs import LogitsOf
from ..protocols.base import Protocol, StepwiseProtocol
from ..results.verdict import LEVELS
from ..utils.checks import check_at_least, check_name
from ..utils.contexts import device_of, fp32, frozen
from ..utils.errors import InputError
from ..utils.machine import check_batch, check_processes
from ..utils.processes import one_thread, process_count
from ..utils.rng import GUARD, uniform
from .cycle_end import decide_cycle_detection, is_repeatable
from .guards import FEW, SAMPLE, run_guards, run_guards_of_gradients
from .model_under_test import (
    Bench,
    InFloat32,
    copy_if_possible,
    equal_sizes,
    gives_places_equal_bits,
    in_float32,
    name_failing_image,
    unwrap_logits,
)
from .precision import check_precision
from .randomness import VERDICT_PASSES, averages_draws, check_verdict_passes, detect_randomness, random_bench
from .step_graph import are_graphs_wanted
from .surrogate import attackable_surrogate, check_transfer, describe_surrogate

#: number of rows in every pass on a CPU, where libraries round differently for other batch shapes; fewer for few
#: images, so that two processes get a share, and for images of more than LARGE pixels, which would fill the memory
MAX_COMPUTE_BATCH, MIN_COMPUTE_BATCH = 64, 16
LARGE, MIN_COMPUTE_BATCH_LARGE = 64 * 64, 4

#: passes that a step of an attack fills on a CPU, where images are small: what a step costs beside them is shared
MAX_PASSES_PER_STEP = 2

#: minimum number of passes that the images of every process fill if one process may have images waiting
MIN_SHARE = 4

#: how thoroughly evaluations are probed by default
DEFAULT_CHECK = "default"

#: from this number of queries per image, it pays to find out which smaller passes give the same bits
MIN_QUERIES = 500

#: distance from the clean images at which guards look if no protocol has an eps
AWAY = 8 / 255

#: steps between checks of which images are decided, on devices where a check makes the host wait
PATIENCE = 4


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model and images that are ready for evaluations.

    Attributes:
        surrogate: the network that gradients come from, if it is another one.
        hashes: SHA-256 of weights and images.
        code: SHA-256 of the file whose callable returned the model, if there is one.
        behavior: logits of some clean and perturbed images, [n, classes], which reveal a changed model.
        pristine: a copy of the model from before its first pass, for probes; None if it cannot be copied.
        output: where the logits are in what the model returns.
        logits_dtype: dtype that the model computes its logits in; losses and verdicts are in float32.
        bench: the model with the size of its passes, in fp32.
        processes: maximum number of processes, each with one thread; 0 for this process with PyTorch's threads.
        others: the arguments of ``prepare``.
    """

    model: nn.Module
    surrogate: nn.Module | None
    data: Dataset
    name: str
    device: torch.device
    hashes: dict[str, str]
    code: str | None
    logits_dtype: str
    output: str
    behavior: Tensor
    pristine: nn.Module | None
    bench: Bench
    batch_size: int
    shard: tuple[int, int] | None
    workers: int
    processes: int
    precision: str
    check: str

    def select_positions(self, protocol: Protocol) -> Tensor:
        """Return the positions of the images that an evaluation under ``protocol`` attacks."""
        return select_positions(self.data, protocol, self.shard, self.bench.seed)


def prepare(
    model: nn.Module,
    data: Any,
    protocols: Sequence[Protocol],
    *,
    seed: int = 0,
    batch_size: int = 64,
    compute_batch: int | None = None,
    shard: tuple[int, int] | None = None,
    name: str | None = None,
    workers: int = 0,
    processes: int | None = None,
    precision: str = "fp32",
    check: str | None = None,
    allow: Collection[str] = (),
    end_at_cycles: bool = True,
    verdict_passes: int = VERDICT_PASSES,
    surrogate: nn.Module | None = None,
) -> Prepared:
    """Do everything that comes before the first attack; arguments and errors as in ``evaluate``."""
    data = adapt_data(model, data)
    for protocol in protocols:
        protocol.check()
    if any(protocol.targeted for protocol in protocols):
        check_classes(data.num_classes)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed = {seed}: must be between 0 and 2^32 - 1")
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, compute_batch=compute_batch or 0)
    check_processes(workers=workers)
    device = device_of(model)
    processes = process_count(processes)
    sample = min(SAMPLE, compute_batch or batch_size)
    if compute_batch is None and device.type == "cpu":
        sample = SAMPLE
    if compute_batch is None:
        whole = max(len(select_positions(data, protocol, None, seed)) for protocol in protocols)
        compute_batch = default_compute_batch(whole, data.image_shape) if device.type == "cpu" else 0
    rows = compute_batch or batch_size
    check_batch("batch_size", min(batch_size, len(data)), prod(data.image_shape))
    check_batch("compute_batch", compute_batch, prod(data.image_shape))
    check_precision(precision, device)
    check = DEFAULT_CHECK if check is None else check
    check_name("check", check, LEVELS)
    check_verdict_passes(verdict_passes)
    most = max((select_positions(data, protocol, shard, seed) for protocol in protocols), key=len)
    with (
        frozen(model),
        frozen(surrogate or nn.Identity()),
        fp32(device),
    ):  # a model that does not fit is refused before anything is written
        images, labels, ids = data.batch(most[evenly_spaced(len(most), sample)])
        check_images(images, ids)
        images, labels, ids = (column.to(device) for column in (images, labels, ids))
        pristine = None if check == "off" else copy_if_possible(model)
        plain, output = unwrap_logits(model, images[:1])
        judge, logits_dtype = in_float32(plain, images[:1])
        if pristine is not None and plain is not model:
            pristine = LogitsOf(pristine).eval()
        if pristine is not None and isinstance(judge, InFloat32):
            pristine = InFloat32(pristine, judge.takes).eval()
        eps = max((protocol.eps for protocol in protocols if protocol.norm == "linf"), default=AWAY)
        away = (images + (eps or AWAY) * (2 * uniform(seed, GUARD, ids, images.shape[1:]) - 1)).clamp(0, 1)[:FEW]
        averaged = surrogate is None and all(map(averages_draws, protocols))
        with name_failing_image(model, images, ids):
            num_classes = run_guards(
                judge,
                images,
                labels,
                ids,
                num_classes=data.num_classes,
                max_label=int(data.labels.max()),
                away=away,
                resolution=torch.finfo(logits_dtype).eps,
                allow=allow,
                averaged=averaged,
            )
            draws = detect_randomness(judge, images[:FEW], away, ids[:FEW], seed) if averaged else None
        attacked = make_attackable(judge, torch.cat([images[:FEW], away])) if draws is None else judge
        if processes > 1:
            pack_weights(attacked)
        if surrogate is not None:
            check_transfer(protocols)
            attacked = attackable_surrogate(surrogate, images, labels, ids, away, num_classes, allow)
        elif any(protocol.follows_gradients for protocol in protocols):
            with name_failing_image(attacked, images, ids):
                run_guards_of_gradients(attacked, images, labels, ids, allow=allow)
        full = torch.arange(rows) % len(images)  # a pass of the attack's size
        queries = [
            sum(
                part.steps * part.draws(num_classes)
                for part in protocol.attacks()
                if isinstance(part, StepwiseProtocol)
            )
            for protocol in protocols
        ]
        sizes: tuple[int, ...] = ()
        if max(queries) >= MIN_QUERIES and compute_batch and device.type == "cpu" and processes and draws is None:
            with one_thread():
                sizes = equal_sizes(attacked, images[full], labels[full])
        places = True  # with more rows, no library was seen to treat places of a batch differently
        if compute_batch and compute_batch < MIN_COMPUTE_BATCH and draws is None:
            with one_thread() if processes else nullcontext():
                places = gives_places_equal_bits(judge, images[full])
        bench = Bench(
            model=judge,
            attacked=attacked,
            num_classes=num_classes,
            seed=seed,
            rows=rows,
            fixed=bool(compute_batch),
            patience=1 if device.type == "cpu" else PATIENCE,
            precision=nullcontext,
            sizes=sizes,
            places=places,
            passes_per_step=passes_per_step(max(queries), len(most), rows, processes, data.image_shape)
            if compute_batch
            else 1,
            surrogate=None if surrogate is None else describe_surrogate(surrogate),
            waiting=rows if compute_batch and len(most) >= MIN_SHARE * rows * max(processes, 1) else 0,
            graphs=draws is None and are_graphs_wanted(device),
            cycles=decide_cycle_detection(
                protocols,
                end_at_cycles,
                bool(compute_batch),
                device,
                (lambda: True) if sizes else partial(is_repeatable, attacked, images[full], labels[full]),
            ),
        )
        if draws is not None:
            bench = random_bench(bench, draws, verdict_passes)
        elif any(part.eot > 1 for protocol in protocols for part in protocol.attacks()):
            warnings.warn(
                "the model is deterministic: only one of the `eot` draws is made, the others would equal it",
                stacklevel=2,
            )
        shown, shown_ids = torch.cat([images[:FEW], away]), ids[:FEW].repeat(2)
        behavior = torch.cat(
            [
                bench.verdict_logits(x, its_ids, torch.zeros_like(its_ids))[0]
                for x, its_ids in zip(torch.split(shown, rows), torch.split(shown_ids, rows), strict=True)
            ]
        )
    return Prepared(
        model=model,
        data=data,
        surrogate=surrogate,
        name=name or type(model).__name__,
        device=device,
        hashes={"weights": weights_hash(model), "images": content_hash(data)},
        code=code_hash(model),
        behavior=behavior,
        output=output,
        pristine=pristine,
        logits_dtype=str(logits_dtype).removeprefix("torch."),
        bench=bench,
        batch_size=batch_size,
        shard=shard,
        workers=workers,
        processes=processes if device.type == "cpu" and compute_batch else 0,
        precision=precision,
        check=check,
    )


def passes_per_step(queries: int, images: int, rows: int, processes: int, image_shape: Sequence[int]) -> int:
    """Return how many passes of ``rows`` images a step of an attack of so many queries an image fills.

    Every process must get its share of the images. Short attacks gain nothing, and keep less work in flight.
    """
    if queries < MIN_QUERIES or image_shape[-2] * image_shape[-1] > LARGE:
        return 1
    return max(1, min(MAX_PASSES_PER_STEP, images // max(processes, 1) // rows))


def default_compute_batch(images: int, image_shape: Sequence[int]) -> int:
    """Return the default number of rows of a pass on a CPU, a power of two.

    It depends on the number of images in the whole evaluation, so that shards use the same.
    """
    rows = min(MAX_COMPUTE_BATCH, max(MIN_COMPUTE_BATCH, 1 << ((images + 1) // 2 - 1).bit_length()))
    pixels = image_shape[-2] * image_shape[-1]
    while pixels > LARGE and rows > MIN_COMPUTE_BATCH_LARGE:
        pixels, rows = pixels // 2, rows // 2
    return rows


def adapt_data(model: nn.Module, data: Any) -> Dataset:
    """Convert ``data``, see ``as_dataset``; if it has no class names, the model determines the number of classes."""
    if isinstance(data, Dataset):
        return data
    found = as_dataset(data)
    if found.classes is None:
        with frozen(model), torch.no_grad():
            x = found.batch(torch.arange(1))[0].to(device_of(model))
            judge = in_float32(unwrap_logits(model, x)[0], x)[0]
            try:
                logits = judge(x)
            except Exception:  # users' code may raise anything; the guards report it
                return found
        if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] > found.num_classes:
            return replace(found, num_classes=logits.shape[1])
    return found


def select_positions(data: Dataset, protocol: Protocol, shard: tuple[int, int] | None, seed: int) -> Tensor:
    """Return the positions of the images that the protocol attacks, or of the shard's part of them.

    Raises:
        InputError: an impossible shard.
    """
    first = protocol.first
    chosen = data.ids.argsort()[:first].sort().values if first else torch.arange(len(data))
    if protocol.balanced:
        chosen = draw_balanced(data.labels, data.ids, protocol.balanced, seed=seed)
    index, count = shard or (1, 1)
    n = len(chosen)
    if not 1 <= index <= count <= n:
        raise InputError(f"shard {index}/{count}: i/n with 1 <= i <= n <= {n} (the number of images) is needed")
    return chosen[index - 1 :: count]
