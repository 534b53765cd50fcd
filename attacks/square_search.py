"""Square Attack (Andriushchenko et al. 2020) in L-infinity: random search with squares, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.rng import SEARCH, uniform
from .arguments import check_attack, check_images, check_labels
from .losses import margin
from .square_lp import WindowSearch, begin_number_buffer, draw_numbers, square_share
from .stepwise import State, run

#: repeated queries that are skipped between two passes; each further one costs more than it saves
MAX_SKIPS = 3


def square(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    ids: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    queries: int = 5000,
    p: float = 0.8,
    seed: int = 0,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Attack the margin loss and return the last query; the official schedule of 10,000 queries is not rescaled.

    Args:
        model, x, labels, eps: as in ``pgd_linf``.
        ids: [N] int64; together with ``seed`` they determine the squares, independent of the batch. (The official code
            draws one place for all images of a batch.)
        norm: norm of the ball, "linf", "l2" or "l1".
        queries: number of queries after the first one.
        p: share of the pixels in the first squares.
        observe: called as ``observe(step, query, logits)`` for every query except the last.

    Raises:
        InputError: as ``pgd_linf``.
    """
    check_attack(eps=eps, step_size=eps, steps=queries, norm=norm)
    check_images(x)
    check_labels(x, labels)
    attack: SquareSearch | WindowSearch = SquareSearch(eps, queries, p, seed)
    if norm != "linf":
        attack = WindowSearch(norm, eps, queries, p, seed)
    draws = torch.zeros_like(ids)
    return run(attack, model, x, labels, None, attack.first(x, ids, draws), margin, observe, ids)


@dataclass(frozen=True)
class SquareSearch:
    """Square Attack as a sequence of queries; arguments as in ``square``."""

    eps: float
    steps: int
    p: float
    seed: int
    needs_gradient: bool = False

    def first(self, x: Tensor, ids: Tensor, draws: int | Tensor) -> Tensor:
        """Return the first query, with each column of each channel at a random end of the ball."""
        signs = uniform(self.seed, SEARCH, ids, (x.shape[1], 1, x.shape[3]), draws * (self.steps + 1)) < 0.5
        return (x + self.eps * (1 - 2 * signs.to(x.dtype))).clamp(0, 1)

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        return {
            "query": start,
            "best": start,
            "best_loss": torch.full_like(x[:, 0, 0, 0], -torch.inf),
            "ids": ids,
            "draws": draws,
            **begin_number_buffer(x, 2 + x.shape[1]),
        }

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        better = loss > state["best_loss"]
        best = torch.where(better.view(-1, 1, 1, 1), state["query"], state["best"])
        best_loss = torch.where(better, loss, state["best_loss"])
        return self.propose(x, {**state, "best": best, "best_loss": best_loss}, step)

    def propose(self, x: Tensor, state: State, step: Tensor) -> State:
        """Return the state whose query is the best one with a square of a random place, sign and size."""
        channels, height, width = x.shape[1:]
        drawn, ahead = draw_numbers(state, step, self.seed, self.steps, 2 + channels)
        drawn = drawn[:, :, None, None]
        side = self.sides(step, height, width).view(-1, 1, 1, 1)
        top, left = ((drawn[:, :1] * (height - side)).long(), (drawn[:, 1:2] * (width - side)).long())
        row = torch.arange(height, device=x.device).view(1, 1, -1, 1)
        column = torch.arange(width, device=x.device).view(1, 1, 1, -1)
        inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
        delta = 2 * self.eps * torch.where(drawn[:, 2:] < 0.5, -1.0, 1.0) * inside
        query = torch.min(torch.max(state["best"] + delta, x - self.eps), x + self.eps).clamp(0, 1)
        return {**state, **ahead, "query": query}

    def skip_repeats(self, x: Tensor, state: State, step: Tensor) -> tuple[State, Tensor]:
        """Draw again where a square changes no pixel, as where all of them are at that end of the ball already."""
        skipped = torch.zeros_like(step)
        for _ in range(MAX_SKIPS):
            repeats = (state["query"] == state["best"]).flatten(1).all(1) & (step + skipped < self.steps)
            here = repeats.nonzero()[:, 0]
            if not len(here):
                break
            few = self.propose(x[here], {name: column[here] for name, column in state.items()}, (step + skipped)[here])
            redrawn = ("query", "ahead", "ahead_from")
            state = {**state, **{name: state[name].index_copy(0, here, few[name]) for name in redrawn if name in few}}
            skipped = skipped + repeats
        return state, skipped

    def sides(self, step: Tensor, height: int, width: int) -> Tensor:
        """Return the sides of the squares in pixels, [N]."""
        return (square_share(self.p, step) * height * width).sqrt().round().long().clamp(1, min(height, width))
