"""Attacks that probe an evaluation: each is a source of directions, a walk and a start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..attacks import starts
from ..attacks.losses import LOSSES, margin
from ..attacks.pgd import ProjectedGradient
from ..attacks.square_lp import WindowSearch
from ..attacks.square_search import SquareSearch
from ..attacks.stepwise import Stepwise
from ..protocols.apgd import APGD
from ..protocols.square import Square
from ..results.verdict import DOMINATED, STRONGER
from . import oracles
from .oracles import DRAWS_OF_A_PROBE, Oracle, Queries


@dataclass(frozen=True, eq=False)
class Victims:
    """Images under attack, one row each: clean images, ids, labels, and targets where the attack has some."""

    x: Tensor
    ids: Tensor
    labels: Tensor
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Victims:
        targets = None if self.targets is None else self.targets[index]
        return Victims(self.x[index], self.ids[index], self.labels[index], targets)

    def reached(self, logits: Tensor) -> Tensor:
        """Return True if the attack is at its aim, [n] bool; logits that are no numbers are no success."""
        predictions = logits.argmax(1)
        there = predictions != self.labels if self.targets is None else predictions == self.targets
        return there & logits.isfinite().all(1)

    def misclassified(self, logits: Tensor) -> Tensor:
        return (logits.argmax(1) != self.labels) & logits.isfinite().all(1)


@dataclass(frozen=True)
class Ball:
    """The ball and the range of pixels that attacks stay in."""

    eps: float
    norm: str

    def per_pixel(self, pixels: int) -> float:
        """The change of every pixel of an image that uses up the ball."""
        exponent = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.norm]
        return float(self.eps / pixels**exponent)

    def lengths(self, delta: Tensor) -> Tensor:
        """In the norm of the ball, [n]."""
        flat = delta.flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(p=1 if self.norm == "l1" else 2, dim=1)


Start = Callable[[Victims, Ball, int], Tensor]


@dataclass(frozen=True)
class Probe:
    """One probing attack.

    Args:
        name: for reports.
        kind: ``STRONGER`` or ``DOMINATED``.
        oracle: from the model to a source of directions.
        walk: of the queries.
        start: of the first query.
        number: keys its random numbers.
    """

    name: str
    kind: str
    oracle: Callable[[nn.Module], Oracle]
    walk: Stepwise
    start: Start
    number: int


def from_clean(victims: Victims, ball: Ball, draw: int, seed: int = 0) -> Tensor:
    return victims.x


def from_noise(victims: Victims, ball: Ball, draw: int, seed: int = 0) -> Tensor:
    """At random in the ball."""
    if ball.norm == "l1":
        return starts.in_l1_ball(victims.x, victims.ids, ball.eps, seed=seed, draw=draw)
    return starts.in_ball(victims.x, victims.ids, ball.eps, ball.norm, seed=seed, draw=draw)


def follow(probe: Probe, model: nn.Module, victims: Victims, ball: Ball) -> tuple[Tensor, float]:
    """The images where ``probe`` ended, its successes among them, and the forward passes that it took."""
    oracle, draw = probe.oracle(model), probe.number * DRAWS_OF_A_PROBE
    query = probe.start(victims, ball, draw)
    final, rows, left, passes = query.clone(), torch.arange(len(victims)), victims, 0.0
    state = probe.walk.begin(left.x, query, left.ids, torch.full_like(left.ids, probe.number))
    for step in range(probe.walk.steps):
        query = state["query"]
        logits, loss, direction = oracle.ask(Queries(query, left.ids, left.labels, left.targets, draw + step))
        passes += oracle.cost * len(left)
        reached = torch.zeros_like(left.labels, dtype=torch.bool) if logits is None else left.reached(logits)
        step_number = torch.full_like(left.labels, step)
        state = probe.walk.advance(left.x, state, step_number, loss, direction, reached)
        if (there := reached.cpu()).any():
            final[rows[there]] = query[there]
            rows, left = rows[~there], left.rows(~there)
            state = {name: column[~there] for name, column in state.items()}
        if not len(rows):
            return final, passes
    final[rows] = state["query"]
    return final, passes


def pgd(ball: Ball, steps: int, step: float, momentum: float = 0.75) -> Stepwise:
    """Steps of a share of eps with momentum; APGD in L1, where sign and length of a gradient are no step."""
    if ball.norm == "l1":
        return automatic(ball, steps)
    return ProjectedGradient(ball.norm, ball.eps, step * ball.eps, steps, momentum)


def automatic(ball: Ball, steps: int) -> Stepwise:
    return APGD(eps=ball.eps, norm=ball.norm, steps=steps).stepwise(0)


def black_box(ball: Ball, queries: int, seed: int) -> SquareSearch | WindowSearch:
    return Square(eps=ball.eps, norm=ball.norm, queries=queries).stepwise(seed)


def stronger(ball: Ball, num_classes: int, scale: float, targeted: bool) -> list[Probe]:
    """Gradient attacks that are stronger than most that are reported: other losses and aims, momentum, adaptive steps.

    Aims are the second and third best other classes, for models whose best other class cannot be reached.
    """
    steps = max(10, round(30 * scale))
    out = [Probe("momentum and margin loss", STRONGER, own_gradient("margin"), pgd(ball, steps, 0.15), from_clean, 0)]
    for number, loss in enumerate(["cross-entropy", *["dlr"] * (num_classes > 3)], 1):
        walk = automatic(ball, steps)
        out.append(Probe(f"APGD, {loss}", STRONGER, own_gradient(loss), walk, from_noise, number))
    short = pgd(ball, max(6, round(12 * scale)), 0.2)
    for number, rank in enumerate(range(2, 2 if targeted else min(4, num_classes)), 5):
        oracle = partial(oracles.gradient, objective=partial(margin_of_rank, rank=rank))
        out.append(Probe(f"margin to other class {rank}", STRONGER, oracle, short, from_noise, number))
    return out


def margin_of_rank(logits: Tensor, labels: Tensor, targets: Tensor | None, rank: int) -> Tensor:
    """By how much the ``rank``-th best other logit exceeds the label's, [n]."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).topk(rank, 1).values[:, -1]
    return others - logits.gather(1, own)[:, 0]


def hardest(ball: Ball, scale: float) -> list[Probe]:
    """Gradient attacks to the utmost, for images that something else broke."""
    steps = max(40, round(100 * scale))
    return [
        Probe(
            f"APGD, {loss}, {steps} steps",
            STRONGER,
            own_gradient(loss),
            automatic(ball, steps),
            from_noise,
            number,
        )
        for number, loss in enumerate(("margin", "cross-entropy"), 10)
    ]


def own_gradient(loss: str) -> Callable[[nn.Module], Oracle]:
    return partial(oracles.gradient, objective=LOSSES[loss])


def dominated(parts: oracles.Parts, ball: Ball, seed: int, scale: float, pixels: int) -> list[Probe]:
    """Attacks that a sound gradient attack dominates, the cheap ones first."""
    radius = ball.per_pixel(pixels)
    short = pgd(ball, max(8, round(15 * scale)), 0.2)
    steps = pgd(ball, max(5, round(8 * scale)), 0.3)
    copies, pairs = max(3, round(6 * scale)), max(6, round(15 * scale))
    sources: list[tuple[str, Callable[[nn.Module], Oracle], Stepwise]] = [
        ("one large step", own_gradient("margin"), pgd(ball, 1, 1.0, 0.0)),
        ("straight-through gradient", partial(oracles.straight_through, objective=margin), short),
        *(
            (f"network inside ({name})", partial(oracles.inside, objective=margin, name=name), short)
            for name in parts.networks
        ),
        *(
            (f"gradient at layer {name}", partial(oracles.at_input_of, objective=margin, name=name), short)
            for name in parts.layers
        ),
        (
            "smoothed gradient",
            partial(oracles.smoothed, objective=margin, radius=0.75 * radius, copies=copies, seed=seed),
            steps,
        ),
        (
            "finite differences",
            partial(oracles.differences, objective=margin, radius=0.5 * radius, pairs=pairs, seed=seed),
            steps,
        ),
    ]
    out = [
        Probe(name, DOMINATED, oracle, walk, from_clean, number)
        for number, (name, oracle, walk) in enumerate(sources, 20)
    ]
    search = black_box(ball, max(60, round(300 * scale)), seed)
    out.append(Probe("Square", DOMINATED, partial(oracles.nothing, objective=margin), search, from_squares, 39))
    return out


def from_squares(victims: Victims, ball: Ball, draw: int, seed: int = 0) -> Tensor:
    """The first query of Square."""
    return black_box(ball, 1, seed).first(victims.x, victims.ids, draw)


def noise_images(victims: Victims, ball: Ball, seed: int, copies: int) -> Sequence[Tensor]:
    """Random images in the ball: uniform ones, and corners of it."""
    out = []
    for number in range(copies):
        near = from_noise(victims, ball, 30 * DRAWS_OF_A_PROBE + number, seed)
        if number % 2 and ball.norm == "linf":
            near = (victims.x + ball.eps * (near - victims.x).sign()).clamp(0, 1)
        out.append(near)
    return out


def longer(probe: Probe, factor: int, number: int) -> Probe:
    """The same probe with more steps, from noise."""
    walk = replace(probe.walk, steps=factor * probe.walk.steps)  # type: ignore[type-var]
    start = from_squares if isinstance(probe.walk, SquareSearch | WindowSearch) else from_noise
    return replace(probe, walk=walk, start=start, number=number)
