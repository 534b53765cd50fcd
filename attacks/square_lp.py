"""Square Attack in L2 (Andriushchenko et al. 2020) and in L1 (Croce and Hein 2021): move mass between windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..utils.rng import SEARCH, uniform
from .projections import onto_l1_ball
from .stepwise import State, constant

#: side of the smallest window, in pixels
MIN_SIDE = 3

#: number of tiles per side of the first query
TILES = 5


@dataclass(frozen=True)
class WindowSearch:
    """Square Attack in L2 or L1 as a sequence of queries; arguments as in ``square``."""

    norm: str
    eps: float
    steps: int
    p: float
    seed: int
    needs_gradient: bool = False

    def first(self, x: Tensor, ids: Tensor, draws: int | Tensor) -> Tensor:
        """Return the first query: a pattern in each tile, with a random sign per channel and a random orientation."""
        channels, height, width = x.shape[1:]
        side = max(height // TILES, 1)
        margin = max((height - side * TILES) // 2, 0)
        places = [
            (top, left)
            for top in range(margin, margin + side * (height // side), side)
            for left in range(margin, margin + side * (width // side), side)
        ]
        drawn = uniform(self.seed, SEARCH, ids, (len(places), 1 + channels), draws * (self.steps + 1))
        delta = torch.zeros_like(x)
        one = torch.ones_like(ids)
        for place, (top, left) in enumerate(places):
            turned, signs = drawn[:, place, 0] > 0.5, to_signs(drawn[:, place, 1:])
            shape = self.place_pattern(x, one * side, one * top, one * left, turned)
            delta = delta + shape * signs
        return self.project(x, delta)

    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        return {
            "query": start,
            "best": start,
            "best_loss": torch.full_like(x[:, 0, 0, 0], -torch.inf),
            "ids": ids,
            "draws": draws,
            **begin_number_buffer(x, 5 + x.shape[1]),
        }

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        better = loss > state["best_loss"]
        best = torch.where(better.view(-1, 1, 1, 1), state["query"], state["best"])
        channels, height, width = x.shape[1:]
        drawn, ahead = draw_numbers(state, step, self.seed, self.steps, 5 + channels)
        side = (square_share(self.p, step) * height * width).sqrt().round().long().clamp_min(MIN_SIDE)
        side = (side + (side % 2 == 0)).clamp_max(min(height, width))
        top, other_top = ((drawn[:, i] * (height - side)).long() for i in (0, 2))
        left, other_left = ((drawn[:, i] * (width - side)).long() for i in (1, 3))
        shape = self.place_pattern(x, side, top, left, drawn[:, 4] > 0.5) * to_signs(drawn[:, 5:])
        here, there = (window_mask(x, side, *place) for place in ((top, left), (other_top, other_left)))

        # the first window gets the mass of both windows, and whatever the ball has left
        delta = best - x
        new = shape + torch.where(here, delta / (1e-12 + self.channel_norms(delta * here)), 0.0)
        room = self.eps**2 - self.image_norms(delta) ** 2 if self.norm == "l2" else self.eps - self.image_norms(delta)
        both = self.channel_norms(delta * (here | there))
        if self.norm == "l2":
            amount = (room.clamp_min(0) / channels + both**2).sqrt()
        else:
            amount = (room.clamp_min(0) / channels + both) * channels
        new = new / (1e-12 + self.channel_norms(new)) * amount
        delta = torch.where(here, new, torch.where(there, 0.0, delta))
        return {
            **state,
            **ahead,
            "query": self.project(x, delta),
            "best": best,
            "best_loss": torch.where(better, loss, state["best_loss"]),
        }

    def channel_norms(self, delta: Tensor) -> Tensor:
        """Return the norm of each channel, [N, C, 1, 1]."""
        if self.norm == "l1":
            return delta.abs().sum(dim=(2, 3), keepdim=True)
        return delta.square().sum(dim=(2, 3), keepdim=True).sqrt()

    def image_norms(self, delta: Tensor) -> Tensor:
        """Return the norm of each image, [N, 1, 1, 1]."""
        if self.norm == "l1":
            return delta.abs().sum(dim=(1, 2, 3), keepdim=True)
        return delta.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Project ``x + delta`` to the surface of the ball (L2) or into it (L1), and to [0, 1]."""
        if self.norm == "l1":
            return x + onto_l1_ball(x, delta, self.eps * (1 - 1e-6))
        return (x + delta / (self.image_norms(delta) + 1e-12) * self.eps).clamp(0, 1)

    def place_pattern(self, x: Tensor, side: Tensor, top: Tensor, left: Tensor, turned: Tensor) -> Tensor:
        """Place the pattern of size ``side`` in an image of zeros, [N, 1, H, W]; ``turned`` transposes it."""
        height, width = x.shape[2:]
        largest = min(height, width)
        table = window_patterns(self.norm, largest).to(x.device, x.dtype)
        row = torch.arange(height, device=x.device).view(1, -1, 1) - top.view(-1, 1, 1)
        column = torch.arange(width, device=x.device).view(1, 1, -1) - left.view(-1, 1, 1)
        row, column = row.expand(-1, -1, width), column.expand(-1, height, -1)
        turn = turned.view(-1, 1, 1)
        row, column = torch.where(turn, column, row), torch.where(turn, row, column)
        last = side.view(-1, 1, 1)
        inside = (row >= 0) & (row < last) & (column >= 0) & (column < last)
        index = (last * largest + row.clamp(0, largest - 1)) * largest + column.clamp(0, largest - 1)
        values = table.flatten()[index]
        return torch.where(inside, values, 0.0)[:, None]


#: number of queries whose random numbers are drawn at once on a CPU, where many small operations are slow
AHEAD = 32


def begin_number_buffer(x: Tensor, count: int) -> State:
    """Make the columns of the state in which ``draw_numbers`` keeps numbers drawn ahead, and the first of them."""
    if x.device.type != "cpu":
        return {}
    return {
        "ahead": x.new_zeros(len(x), AHEAD, count, dtype=torch.float32),
        "ahead_from": torch.full((len(x),), -AHEAD),
    }


def draw_numbers(state: State, step: Tensor, seed: int, steps: int, count: int) -> tuple[Tensor, State]:
    """Return the uniform numbers of query ``step`` [N] of a search of ``steps``, [N, count], and the columns to keep.

    They are functions of (seed, image id, draw, step), whether drawn ahead or not.
    """
    at = state["draws"] * (steps + 1) + 1 + step
    if "ahead" not in state:
        return uniform(seed, SEARCH, state["ids"], (count,), at), {}
    ahead, first = state["ahead"], state["ahead_from"]
    if bool((at - first >= AHEAD).any()):
        due = at - first >= AHEAD // 2  # those that will be due soon as well: fewer and larger draws
        draws = at[due][:, None] + torch.arange(AHEAD)
        drawn = uniform(seed, SEARCH, state["ids"][due].repeat_interleave(AHEAD), (count,), draws.flatten())
        ahead = ahead.clone()
        ahead[due] = drawn.view(-1, AHEAD, count)
        first = torch.where(due, at, first)
    return ahead[torch.arange(len(step)), at - first], {"ahead": ahead, "ahead_from": first}


def to_signs(drawn: Tensor) -> Tensor:
    """Turn uniform numbers [N, C] into signs, [N, C, 1, 1]."""
    return torch.where(drawn < 0.5, -1.0, 1.0)[:, :, None, None]


def window_mask(x: Tensor, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return the mask of the pixels in square windows, [N, 1, H, W] bool."""
    row = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1)
    column = torch.arange(x.shape[3], device=x.device).view(1, 1, 1, -1)
    side, top, left = (value.view(-1, 1, 1, 1) for value in (side, top, left))
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)


@lru_cache(maxsize=8)
def window_patterns(norm: str, largest: int) -> Tensor:
    """Return the patterns of every size up to ``largest``, [largest + 1, largest, largest], each with norm 1."""
    table = torch.zeros(largest + 1, largest, largest)
    for side in range(1, largest + 1):
        top = side // 2
        whole = torch.zeros(side, side)
        whole[:top] = pyramid(norm, top, side)
        whole[top:] = -pyramid(norm, side - top, side)
        table[side, :side, :side] = whole / norm_of(norm, whole)
    return table


def pyramid(norm: str, height: int, width: int) -> Tensor:
    """Return a sum of concentric rectangles, of which larger ones contribute less."""
    delta = torch.zeros(height, width)
    if not height:
        return delta
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        delta[rows, columns] += 1 / (ring + 1) ** (2 if norm == "l2" else 4)
    return delta / norm_of(norm, delta)


def norm_of(norm: str, values: Tensor) -> Tensor:
    return values.abs().sum() if norm == "l1" else values.square().sum().sqrt()


def square_share(p: float, step: Tensor) -> Tensor:
    """Return the share of the image that a square covers, [N] float64, which is halved at each of ``HALVINGS``."""
    halvings = torch.bucketize(step, constant(HALVINGS, step.dtype, step.device))
    return p / 2 ** halvings.double()


#: queries after which the share of the pixels is halved (the official schedule)
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
