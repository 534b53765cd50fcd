"""Run users' own attacks on a stream of images; verify and count them, and let the model itself judge the results."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.losses import lead
from ..protocols.custom import Custom
from ..utils.errors import InputError, RunError
from ..utils.rng import SEARCH, words
from .batch_state import Rows, add_elapsed_time, size
from .library_attacks import Counted, attack_in_batches, split_evenly
from .model_under_test import Bench, verify_bounds


def attack_custom(part: Custom, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Attack each undecided row of ``source`` once; rows that are already decided are passed on unchanged."""
    if part.function is None:
        raise InputError(f"attack {part.entry!r} was read from a record, without its function: give the function")
    rows = bench.rows if part.together else 1
    return attack_in_batches(source, rows, lambda batch: attack_batch(part, number, batch, bench))


def attack_batch(part: Custom, number: int, rows: Rows, bench: Bench) -> Rows:
    """Attack one batch and return its rows with the verdicts.

    Raises:
        RunError: the attack failed, returned something other than images, or left its ball; names the first image.
    """
    began = time.perf_counter()
    x, labels, ids, n = rows["x"], rows["label"], rows["id"], size(rows)
    model = Counted(bench, fixed=bench.fixed and part.together)
    with (
        torch.random.fork_rng(devices=[x.device] if x.is_cuda else []),
        bench.precision(),
        torch.enable_grad(),
    ):
        torch.manual_seed(int(words(bench.seed, SEARCH, ids[:1], 1, draw=number)[0, 0]))
        targets = rows["target"].clone() if part.targeted else None
        try:
            assert part.function is not None
            x_adv = part.function(model, x.clone(), labels.clone(), targets)
        except (InputError, RunError):
            raise
        except Exception as error:  # users' code may raise anything, and a failure must not count as robustness
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RunError(f"attack {part.entry} failed on image {int(ids[0])}: {reason}") from error
    x_adv = check_attack_result(part, x, x_adv, ids)
    distance = verify_bounds(x, x_adv, ids, part.eps, part.norm)
    logits = bench.logits(x_adv, ids)
    predictions = logits.argmax(1)
    wrong = predictions != labels
    reached = predictions == rows["target"] if part.targeted else wrong
    return add_elapsed_time(
        {
            **rows,
            **({"finished": x_adv} if bench.keep_images else {}),
            **({"target_loss": F.cross_entropy(logits, rows["target"], reduction="none")} if part.targeted else {}),
            "adversarial": predictions,
            "decided": reached,
            "success": reached,
            "first_success": torch.where(reached, 1, rows["first_success"]),
            "first_wrong": torch.where(wrong & (rows["first_wrong"] < 0), 1, rows["first_wrong"]),
            "margin": torch.minimum(rows["margin"], lead(logits, labels)),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "distance": torch.maximum(rows["distance"], distance),
            "part": torch.where(reached, number, rows["part"]),
            "forwards": rows["forwards"] + 1 + split_evenly(model.forwards, n).to(x.device),
            "backwards": rows["backwards"] + split_evenly(model.backwards, n).to(x.device),
        },
        began,
    )


def check_attack_result(part: Custom, x: Tensor, x_adv: object, ids: Tensor) -> Tensor:
    """Return the attack's result in the dtype of ``x``; RunError unless it is a batch of finite images like ``x``."""
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or not x_adv.is_floating_point():
        found = f"{tuple(x_adv.shape)} {x_adv.dtype}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise RunError(
            f"attack {part.entry} returned {found} for image {int(ids[0])}: floats {tuple(x.shape)} are needed"
        )
    x_adv = x_adv.detach().to(x)
    broken = ~x_adv.isfinite().flatten(1).all(1)
    if broken.any():
        raise RunError(f"attack {part.entry} returned pixels that are not finite for image {int(ids[broken][0])}")
    return x_adv
