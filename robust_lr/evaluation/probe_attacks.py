"""Attacks that probe an evaluation: each combines a source of directions, an update rule and a start."""

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

    def select(self, index: Tensor) -> Victims:
        targets = None if self.targets is None else self.targets[index]
        return Victims(self.x[index], self.ids[index], self.labels[index], targets)

    def is_at_aim(self, logits: Tensor) -> Tensor:
        """Return True where the attack is at its aim, [n] bool; logits that are not finite are never a success."""
        predictions = logits.argmax(1)
        there = predictions != self.labels if self.targets is None else predictions == self.targets
        return there & logits.isfinite().all(1)

    def is_misclassified(self, logits: Tensor) -> Tensor:
        return (logits.argmax(1) != self.labels) & logits.isfinite().all(1)


@dataclass(frozen=True)
class Ball:
    """The ball that attacks stay in."""

    eps: float
    norm: str

    def per_pixel(self, pixels: int) -> float:
        """Return the change per pixel that, made to all pixels of an image, uses up the ball."""
        exponent = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.norm]
        return float(self.eps / pixels**exponent)

    def lengths(self, delta: Tensor) -> Tensor:
        """Return the length of each perturbation in the norm of the ball, [n]."""
        flat = delta.flatten(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(p=1 if self.norm == "l1" else 2, dim=1)


Start = Callable[[Victims, Ball, int], Tensor]


@dataclass(frozen=True)
class Probe:
    """One probing attack.

    Args:
        name: its name in reports.
        kind: ``STRONGER`` or ``DOMINATED``.
        oracle: makes a source of directions from the model.
        walk: the update rule, from one query to the next.
        start: makes the first query.
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
    """Return random points in the ball."""
    if ball.norm == "l1":
        return starts.in_l1_ball(victims.x, victims.ids, ball.eps, seed=seed, draw=draw)
    return starts.in_ball(victims.x, victims.ids, ball.eps, ball.norm, seed=seed, draw=draw)


def run_probe(probe: Probe, model: nn.Module, victims: Victims, ball: Ball) -> tuple[Tensor, float]:
    """Run a probe; return the images where it ended, successful or not, and the forward passes that it took."""
    oracle, draw = probe.oracle(model), probe.number * DRAWS_OF_A_PROBE
    query = probe.start(victims, ball, draw)
    final, rows, left, passes = query.clone(), torch.arange(len(victims)), victims, 0.0
    state = probe.walk.begin(left.x, query, left.ids, torch.full_like(left.ids, probe.number))
    for step in range(probe.walk.steps):
        query = state["query"]
        logits, loss, direction = oracle.ask(Queries(query, left.ids, left.labels, left.targets, draw + step))
        passes += oracle.cost * len(left)
        reached = torch.zeros_like(left.labels, dtype=torch.bool) if logits is None else left.is_at_aim(logits)
        step_number = torch.full_like(left.labels, step)
        state = probe.walk.advance(left.x, state, step_number, loss, direction, reached)
        if (there := reached.cpu()).any():
            final[rows[there]] = query[there]
            rows, left = rows[~there], left.select(~there)
            state = {name: column[~there] for name, column in state.items()}
        if not len(rows):
            return final, passes
    final[rows] = state["query"]
    return final, passes


def pgd_walk(ball: Ball, steps: int, step: float, momentum: float = 0.75) -> Stepwise:
    """Return PGD with momentum, whose step is a share of eps; in L1, where PGD works badly, APGD."""
    if ball.norm == "l1":
        return apgd_walk(ball, steps)
    return ProjectedGradient(ball.norm, ball.eps, step * ball.eps, steps, momentum)


def apgd_walk(ball: Ball, steps: int) -> Stepwise:
    return APGD(eps=ball.eps, norm=ball.norm, steps=steps).stepwise(0)


def square_walk(ball: Ball, queries: int, seed: int) -> SquareSearch | WindowSearch:
    return Square(eps=ball.eps, norm=ball.norm, queries=queries).stepwise(seed)


def stronger_probes(ball: Ball, num_classes: int, scale: float, targeted: bool) -> list[Probe]:
    """Return gradient attacks that are stronger than most reported attacks: other losses, momentum, adaptive steps.

    Some move towards the second or third best other class, for models whose best other class cannot be reached.
    """
    steps = max(10, round(30 * scale))
    out = [
        Probe("momentum and margin loss", STRONGER, own_gradient("margin"), pgd_walk(ball, steps, 0.15), from_clean, 0)
    ]
    for number, loss in enumerate(["cross-entropy", *["dlr"] * (num_classes > 3)], 1):
        walk = apgd_walk(ball, steps)
        out.append(Probe(f"APGD, {loss}", STRONGER, own_gradient(loss), walk, from_noise, number))
    short = pgd_walk(ball, max(6, round(12 * scale)), 0.2)
    for number, rank in enumerate(range(2, 2 if targeted else min(4, num_classes)), 5):
        oracle = partial(oracles.gradient_oracle, objective=partial(margin_of_rank, rank=rank))
        out.append(Probe(f"margin to other class {rank}", STRONGER, oracle, short, from_noise, number))
    return out


def margin_of_rank(logits: Tensor, labels: Tensor, targets: Tensor | None, rank: int) -> Tensor:
    """Return by how much the ``rank``-th best other logit exceeds the label's, [n]."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).topk(rank, 1).values[:, -1]
    return others - logits.gather(1, own)[:, 0]


def hardest_probes(ball: Ball, scale: float) -> list[Probe]:
    """Return the strongest gradient attacks, for images that another kind of attack broke."""
    steps = max(40, round(100 * scale))
    return [
        Probe(
            f"APGD, {loss}, {steps} steps",
            STRONGER,
            own_gradient(loss),
            apgd_walk(ball, steps),
            from_noise,
            number,
        )
        for number, loss in enumerate(("margin", "cross-entropy"), 10)
    ]


def own_gradient(loss: str) -> Callable[[nn.Module], Oracle]:
    return partial(oracles.gradient_oracle, objective=LOSSES[loss])


def dominated_probes(parts: oracles.Parts, ball: Ball, seed: int, scale: float, pixels: int) -> list[Probe]:
    """Return attacks that a sound gradient attack dominates, cheap ones first."""
    radius = ball.per_pixel(pixels)
    short = pgd_walk(ball, max(8, round(15 * scale)), 0.2)
    steps = pgd_walk(ball, max(5, round(8 * scale)), 0.3)
    copies, pairs = max(3, round(6 * scale)), max(6, round(15 * scale))
    sources: list[tuple[str, Callable[[nn.Module], Oracle], Stepwise]] = [
        ("one large step", own_gradient("margin"), pgd_walk(ball, 1, 1.0, 0.0)),
        ("straight-through gradient", partial(oracles.straight_through_oracle, objective=margin), short),
        *(
            (f"network inside ({name})", partial(oracles.inner_network_oracle, objective=margin, name=name), short)
            for name in parts.networks
        ),
        *(
            (f"gradient at layer {name}", partial(oracles.layer_input_oracle, objective=margin, name=name), short)
            for name in parts.layers
        ),
        (
            "smoothed gradient",
            partial(oracles.smoothed_gradient_oracle, objective=margin, radius=0.75 * radius, copies=copies, seed=seed),
            steps,
        ),
        (
            "finite differences",
            partial(oracles.finite_difference_oracle, objective=margin, radius=0.5 * radius, pairs=pairs, seed=seed),
            steps,
        ),
    ]
    out = [
        Probe(name, DOMINATED, oracle, walk, from_clean, number)
        for number, (name, oracle, walk) in enumerate(sources, 20)
    ]
    search = square_walk(ball, max(60, round(300 * scale)), seed)
    out.append(
        Probe("Square", DOMINATED, partial(oracles.directionless_oracle, objective=margin), search, from_squares, 39)
    )
    return out


def from_squares(victims: Victims, ball: Ball, draw: int, seed: int = 0) -> Tensor:
    """Return the first query of Square."""
    return square_walk(ball, 1, seed).first(victims.x, victims.ids, draw)


def noise_images(victims: Victims, ball: Ball, seed: int, copies: int) -> Sequence[Tensor]:
    """Return random images in the ball, alternating uniform points and corners."""
    out = []
    for number in range(copies):
        near = from_noise(victims, ball, 30 * DRAWS_OF_A_PROBE + number, seed)
        if number % 2 and ball.norm == "linf":
            near = (victims.x + ball.eps * (near - victims.x).sign()).clamp(0, 1)
        out.append(near)
    return out


def lengthen_probe(probe: Probe, factor: int, number: int) -> Probe:
    """Return the same probe with more steps and a random start."""
    walk = replace(probe.walk, steps=factor * probe.walk.steps)  # type: ignore[type-var]
    start = from_squares if isinstance(probe.walk, SquareSearch | WindowSearch) else from_noise
    return replace(probe, walk=walk, start=start, number=number)
