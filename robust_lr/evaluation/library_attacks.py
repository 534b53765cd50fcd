"""Attacks of torchattacks on a stream of images: counted, and judged by the model itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.arguments import within
from ..attacks.losses import lead
from ..attacks.torchattacks_adapter import ball, torchattack
from ..protocols.torchattacks import Library
from ..utils.errors import InputError, RunError
from ..utils.rng import SEARCH, words
from .batch_state import Rows, first, join, size, split, timed
from .model_under_test import Bench


def attack_library(part: Library, number: int, source: Iterator[Rows], bench: Bench) -> Iterator[Rows]:
    """Attack the rows of ``source`` once, as ``continuous_batching.attack_pool`` does."""
    rows = bench.rows if part.together else 1
    return attack_in_batches(source, rows, lambda batch: attacked(part, number, batch, bench))


def attack_in_batches(source: Iterator[Rows], rows: int, attack: Callable[[Rows], Rows]) -> Iterator[Rows]:
    """Apply ``attack`` to the undecided rows of ``source``, ``rows`` at a time; decided rows are passed on."""
    waiting: Rows = {}
    for group in source:
        began, mask = time.perf_counter(), group["decided"].cpu()
        done, todo = split(timed(group, began), mask)
        if done:
            yield done
        waiting = join([waiting, todo])
        while size(waiting) >= rows:
            batch, waiting = first(waiting, rows)
            yield attack(batch)
    if waiting:
        yield attack(waiting)


def attacked(part: Library, number: int, rows: Rows, bench: Bench) -> Rows:
    """``rows`` after the attack; a success is an image within eps that the model misclassifies.

    Raises:
        InputError: the class has no such option.
        RunError: the attack failed, or returned something that is no image; names the first of its images.
    """
    began = time.perf_counter()
    x, labels, n = rows["x"], rows["label"], size(rows)
    model = Counted(bench, fixed=bench.fixed and part.together)
    seed = int(words(bench.seed, SEARCH, rows["id"][:1], 1, draw=number)[0, 0])
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), bench.precision():
        torch.manual_seed(seed)
        try:
            x_adv = torchattack(part.attack, model, x, labels, **options(part, bench, seed))
        except (InputError, RunError):
            raise
        except Exception as error:  # whatever a library raises: an attack that fails must not count as robustness
            raise RunError(f"torchattacks' {part.attack} failed on image {int(rows['id'][0])}: {error}") from error
    # an attack for the smallest distance may end outside the ball
    distance, near = within(x, x_adv, part.eps, part.norm)
    x_adv = torch.where(near.view(-1, 1, 1, 1), x_adv, x)
    logits = bench.logits(x_adv, rows["id"])
    reached = logits.argmax(1) != labels
    return timed(
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
            "forwards": rows["forwards"] + 1 + shares(model.forwards, n).to(x.device),
            "backwards": rows["backwards"] + shares(model.backwards, n).to(x.device),
        },
        began,
    )


def options(part: Library, bench: Bench, seed: int) -> dict[str, Any]:
    """Values of the class: the ball, no more classes than the model has, and a seed where the class sets one."""
    values = {**part.options, **ball(part.attack, part.eps, part.norm)}
    if part.attack in COUNTING or "n_classes" in values:
        values["n_classes"] = min(values.get("n_classes", 10), bench.num_classes)
    return {"seed": seed, **values} if part.attack in SEEDED else values


#: classes of torchattacks with an ``n_classes``, by default 10
COUNTING = ("APGDT", "FAB", "AutoAttack")

#: classes of torchattacks with a ``seed``
SEEDED = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")


def shares(total: int, n: int) -> Tensor:
    """``total`` in ``n`` whole parts that differ by one at most."""
    return total // n + (torch.arange(n) < total % n).long()


class Counted(nn.Module):
    """The attacked model, its images counted, its passes padded to a fixed number of rows if ``fixed``."""

    def __init__(self, bench: Bench, *, fixed: bool):
        super().__init__()
        self.bench, self.fixed = bench, fixed
        self.inner = bench.attacked
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        parts = torch.split(x, self.bench.rows) if self.fixed else [x]
        logits = torch.cat([self.inner(self.bench.padded(p) if self.fixed else p)[: len(p)] for p in parts])
        if logits.requires_grad:
            logits.register_hook(self.count)  # type: ignore[no-untyped-call]
        return logits

    def count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
