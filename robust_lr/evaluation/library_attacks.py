"""Run attacks of torchattacks on a stream of images; count their passes, and let the model itself judge the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.arguments import compare_with_ball
from ..attacks.losses import lead
from ..attacks.torchattacks_adapter import ball_options, torchattack
from ..protocols.torchattacks import Library
from ..utils.errors import InputError, RunError
from ..utils.rng import SEARCH, words
from .batch_state import Rows, add_elapsed_time, join, size, split, split_first
from .model_under_test import Bench


def attack_library(part: Library, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Attack each undecided row of ``source`` once; rows that are already decided are passed on unchanged."""
    rows = bench.rows if part.together else 1
    return attack_in_batches(source, rows, lambda batch: attack_batch(part, number, batch, bench))


def attack_in_batches(source: Iterator[Rows], rows: int, attack: Callable[[Rows], Rows]) -> Iterator[Rows]:
    """Apply ``attack`` to the undecided rows of ``source``, ``rows`` at a time; pass decided rows on unchanged."""
    waiting: Rows = {}
    for group in source:
        began, mask = time.perf_counter(), group["decided"].cpu()
        done, todo = split(add_elapsed_time(group, began), mask)
        if done:
            yield done
        waiting = join([waiting, todo])
        while size(waiting) >= rows:
            batch, waiting = split_first(waiting, rows)
            yield attack(batch)
    if waiting:
        yield attack(waiting)


def attack_batch(part: Library, number: int, rows: Rows, bench: Bench) -> Rows:
    """Attack one batch and return its rows with the verdicts; a success is a misclassified image within eps.

    Raises:
        InputError: the class has no such option.
        RunError: the attack failed, or returned something other than images; names the first image.
    """
    began = time.perf_counter()
    x, labels, n = rows["x"], rows["label"], size(rows)
    model = Counted(bench, fixed=bench.fixed and part.together)
    seed = int(words(bench.seed, SEARCH, rows["id"][:1], 1, draw=number)[0, 0])
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), bench.precision():
        torch.manual_seed(seed)
        try:
            x_adv = torchattack(part.attack, model, x, labels, **options_of_class(part, bench, seed))
        except (InputError, RunError):
            raise
        except Exception as error:  # a library may raise anything, and a failure must not count as robustness
            raise RunError(f"torchattacks' {part.attack} failed on image {int(rows['id'][0])}: {error}") from error
    # a minimum-norm attack may end outside the ball
    distance, near = compare_with_ball(x, x_adv, part.eps, part.norm)
    x_adv = torch.where(near.view(-1, 1, 1, 1), x_adv, x)
    logits = bench.logits(x_adv, rows["id"])
    reached = logits.argmax(1) != labels
    return add_elapsed_time(
        {
            **rows,
            **({"finished": x_adv} if bench.keep_images else {}),
            "adversarial": logits.argmax(1),
            "decided": reached,
            "success": reached,
            "first_success": torch.where(reached, 1, rows["first_success"]),
            "first_wrong": torch.where(reached, 1, rows["first_wrong"]),
            "margin": torch.minimum(rows["margin"], lead(logits, labels)),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "distance": torch.maximum(rows["distance"], torch.where(near, distance, 0)),
            "part": torch.where(reached, number, rows["part"]),
            "forwards": rows["forwards"] + 1 + split_evenly(model.forwards, n).to(x.device),
            "backwards": rows["backwards"] + split_evenly(model.backwards, n).to(x.device),
        },
        began,
    )


def options_of_class(part: Library, bench: Bench, seed: int) -> dict[str, Any]:
    """Return the options of the class: the ball, no more classes than the model has, and a seed if it takes one."""
    values = {**part.options, **ball_options(part.attack, part.eps, part.norm)}
    if part.attack in COUNTING or "n_classes" in values:
        values["n_classes"] = min(values.get("n_classes", 10), bench.num_classes)
    return {"seed": seed, **values} if part.attack in SEEDED else values


#: classes of torchattacks with an ``n_classes``, by default 10
COUNTING = ("APGDT", "FAB", "AutoAttack")

#: classes of torchattacks with a ``seed``
SEEDED = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")


def split_evenly(total: int, n: int) -> Tensor:
    """Split ``total`` into ``n`` integers that differ by at most one."""
    return total // n + (torch.arange(n) < total % n).long()


class Counted(nn.Module):
    """The attacked model with counters for its images; if ``fixed``, passes are padded to a fixed number of rows."""

    def __init__(self, bench: Bench, *, fixed: bool):
        super().__init__()
        self.bench, self.fixed = bench, fixed
        self.inner = bench.attacked
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        parts = torch.split(x, self.bench.rows) if self.fixed else [x]
        logits = torch.cat([self.inner(self.bench.pad(p) if self.fixed else p)[: len(p)] for p in parts])
        if logits.requires_grad:
            logits.register_hook(self.count)  # type: ignore[no-untyped-call]
        return logits

    def count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
