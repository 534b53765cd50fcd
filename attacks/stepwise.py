"""Attacks as sequences of queries: an image's next query is a pure function of the answers for that image so far.

The harness can therefore give an image's place in the batch to another one as soon as the image is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..utils.errors import InputError
from . import cycles
from .losses import Objective

State = dict[str, Tensor]
"""Tensors with one row per image. ``state["query"]`` [N, C, H, W] holds the images for the model's next pass."""


class Stepwise(Protocol):
    """An attack that makes ``steps`` queries to the model and returns the one after."""

    @property
    def steps(self) -> int: ...
    @property
    def needs_gradient(self) -> bool: ...
    def begin(self, x: Tensor, start: Tensor, ids: Tensor, draws: Tensor) -> State:
        """Return the state of images ``x`` whose first query is ``start``; ids and draws [N] key random numbers."""

    def advance(self, x: Tensor, state: State, step: Tensor, loss: Tensor, gradient: Tensor, reached: Tensor) -> State:
        """Return the next state, after query ``step`` [N] gave ``loss`` [N] and its ``gradient`` (empty if not needed).

        ``reached`` [N] bool is True where the query is at the attack's aim.
        """


@runtime_checkable
class TestsProposals(Protocol):
    """A stepwise attack that first tests each proposed query in a forward pass without a gradient."""

    def settle(self, x: Tensor, state: State, reached: Tensor) -> State:
        """Return the next state, given whether the query proposed by ``advance`` is at the attack's aim, [N] bool."""


@runtime_checkable
class SkipsRepeats(Protocol):
    """A stepwise attack whose next query may be one that the model has answered already."""

    def skip_repeats(self, x: Tensor, state: State, step: Tensor) -> tuple[State, Tensor]:
        """Return the state after queries whose answer is known, and the number of such queries, [N] int64.

        ``step`` [N] is that of the next query. A deterministic model would answer as before, so nothing else changes.
        """


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``values`` as a read-only tensor on ``device``, cached because each copy makes a GPU wait."""
    return torch.tensor(values, dtype=dtype, device=device)


def over_pixels(values: Tensor) -> Tensor:
    """Reshape one value per image, [N], so that it broadcasts over the pixels of images [N, C, H, W]."""
    return values.view(-1, 1, 1, 1)


def evaluate_objective(
    model: Callable[[Tensor], Tensor],
    query: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    objective: Objective,
    needs_gradient: bool = True,
    eot: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [N, classes], objective [N] and its gradient with respect to the query (empty if not needed).

    The objective is summed, not averaged, so that no image's gradient depends on its batch. For a random model, all
    three are means over ``eot`` passes (expectation over transformation, Athalye et al. 2018).

    Raises:
        InputError: logits without a gradient.
    """
    if eot > 1:
        sums = evaluate_objective(model, query, labels, targets, objective, needs_gradient)
        for _ in range(eot - 1):
            seen = evaluate_objective(model, query, labels, targets, objective, needs_gradient)
            sums = (sums[0] + seen[0], sums[1] + seen[1], sums[2] + seen[2])
        return sums[0] / eot, sums[1] / eot, sums[2] / eot
    if not needs_gradient:
        with torch.no_grad():
            logits = model(query)
            return logits, objective(logits, labels, targets), query.new_empty(0)
    query = query.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(query)
        loss = objective(logits, labels, targets)
        gradient = torch.autograd.grad(loss.sum(), query, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None:
            raise InputError("the model's logits carry no gradient: it detaches its input or runs under no_grad")
    return logits.detach(), loss.detach(), gradient


def run(
    attack: Stepwise,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    start: Tensor,
    objective: Objective,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
    ids: Tensor | None = None,
    key: str = "query",
    end_at_cycles: bool = False,
    eot: int = 1,
) -> Tensor:
    """Run all steps on one batch; return the last query, or the entry ``key`` of the state.

    ``observe(step, query, logits)`` is called for every query except the last.
    With ``end_at_cycles`` the attack ends once every image is in a cycle, with the same last queries. This is for
    deterministic models, and has no effect on a GPU or for attacks whose moves depend on the step. ``eot`` is passed to
    ``evaluate_objective``.
    """

    def advance(state: State, step: int) -> State:
        query = state["query"]
        logits, loss, gradient = evaluate_objective(
            model, query, labels, targets, objective, attack.needs_gradient, eot
        )
        if observe is not None:
            observe(step, query, logits)
        reached = is_reached(logits, labels, targets)
        state = attack.advance(x, state, torch.full_like(labels, step), loss, gradient, reached)
        if isinstance(attack, TestsProposals):
            with torch.no_grad():
                state = attack.settle(x, state, is_reached(model(state["query"]), labels, targets))
        return state

    none = torch.zeros_like(labels)
    state = attack.begin(x, start.detach(), none if ids is None else ids, none)
    followed = cycles.begin(state, none) if end_at_cycles and x.device.type == "cpu" and is_memoryless(attack) else None
    for step in range(attack.steps):
        state = advance(state, step)
        if followed is not None:
            now = torch.full_like(labels, step + 1)
            followed = cycles.follow(followed, state, now, lambda: none)
            if bool((followed["period"] > 0).all()):
                left = (attack.steps - now) % followed["period"]
                last = state["query"]
                for extra in range(int(left.max())):
                    state = advance(state, step + 1 + extra)
                    last = torch.where((extra < left).view(-1, 1, 1, 1), state["query"], last)
                return last
    return state[key]


def is_memoryless(attack: Stepwise) -> bool:
    """Return True if the next state depends on the present one and the model alone, not on step or randomness."""
    return bool(getattr(attack, "is_memoryless", False))


def is_reached(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Return True if the prediction is the target, or without targets any class but the label, [N] bool."""
    predictions = logits.argmax(1)
    return predictions != labels if targets is None else predictions == targets
