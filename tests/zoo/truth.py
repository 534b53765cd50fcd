"""True robust accuracy of a broken defense: attacks through its surrogate, on the model itself, and by queries."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_lr.attacks.auto_pgd import apgd
from robust_lr.attacks.losses import dlr, margin
from robust_lr.attacks.pgd import pgd_linf
from robust_lr.attacks.square_search import square

from .networks import EPS

#: iterates of an attack through a surrogate that are shown to the defense: one in so many
EVERY = 8


def surviving(model: nn.Module, surrogate: nn.Module, x: Tensor, labels: Tensor, *, queries: int = 500) -> Tensor:
    """Images [N] bool that the model, in a copy that has seen nothing else, classifies correctly whatever was tried."""
    alive = is_right(model, x, labels)
    for number, victim in enumerate((surrogate, model)):
        for attack in (momentum, automatic):
            rows = alive.nonzero()[:, 0]
            if not len(rows):
                return alive
            iterates: list[Tensor] = []

            def keep(step: int, query: Tensor, logits: Tensor, iterates: list[Tensor] = iterates) -> None:
                if step % EVERY == EVERY - 1:
                    iterates.append(query.detach())

            try:
                iterates.append(attack(copy.deepcopy(victim).eval(), x[rows], labels[rows], number, keep))
            except Exception:  # a defense that cannot be attacked like this
                continue
            for candidate in iterates:
                for image in (candidate, (255 * candidate).round() / 255):
                    near = (image - x[rows]).abs().amax((1, 2, 3)) <= EPS + 1e-6
                    alive[rows] &= ~near | is_right(model, image, labels[rows])
    rows = alive.nonzero()[:, 0]
    if len(rows):
        right: list[Tensor] = []

        def note(step: int, query: Tensor, logits: Tensor) -> None:
            right.append(logits.argmax(1) == labels[rows])

        victim = copy.deepcopy(model).eval()
        last = square(victim, x[rows], labels[rows], rows, eps=EPS, queries=queries, observe=note)
        alive[rows] &= torch.stack([*right, is_right(model, last, labels[rows])]).all(0)
    return alive


Observe = Callable[[int, Tensor, Tensor], None]


def momentum(model: nn.Module, x: Tensor, labels: Tensor, seed: int, observe: Observe) -> Tensor:
    return pgd_linf(model, x, labels, eps=EPS, step_size=EPS / 8, steps=40, momentum=0.75, loss=margin, observe=observe)


def automatic(model: nn.Module, x: Tensor, labels: Tensor, seed: int, observe: Observe) -> Tensor:
    noise = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1
    start = (x + EPS * noise).clamp(0, 1)
    return apgd(model, x, labels, eps=EPS, start=start, steps=40, loss=dlr, observe=observe)


@torch.no_grad()
def is_right(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    correct: Tensor = copy.deepcopy(model).eval()(x).argmax(1) == labels
    return correct
