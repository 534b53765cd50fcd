"""Probes: attacks of other kinds on images that an evaluation calls robust, and what they say about its number.

The sample is spaced over the robust images and as large as the budget allows. Budgets are counted in forward passes
and nominal seconds of counted work, never timed, so that a verdict does not depend on the machine's load, on batch
size, processes or resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.dataset import Dataset, evenly_spaced
from ..protocols.base import Protocol
from ..results.ledger import Row
from ..results.validity import Check
from ..results.verdict import DOMINATED, LEVELS, MAX_INFLATION, STRONGER, Probes
from ..utils.contexts import device_of
from . import oracles
from .guards import FEW
from .model_under_test import Bench
from .probe_attacks import (
    Ball,
    Probe,
    Victims,
    dominated,
    follow,
    from_noise,
    hardest,
    longer,
    noise_images,
    stronger,
)
from .structure import Specimen, copies_of, structure
from .work import seconds_of_a_pass

#: nominal seconds that probes may take, and the share of the evaluation's passes where that is more
SECONDS, SHARE = 8.0, 0.1

#: images in the sample at most, and the least for which probes run at full length
MAX_SAMPLE, SAMPLE = 256, 64

#: how long probes are, as shares of their full length: the longest that the budget allows
SCALES = (1.0, 0.5, 0.25)

#: images that a probe attacks at a time
ROWS = 64

#: failed checks of the structure that alone make a number misled; those of gradients where an attack follows them
MISLEADING = (
    "the model keeps no state",
    "same logits with gradients",
    "same logits in another batch",
    "logits are continuous",
    "the gradient predicts the margin",
    "the gradient holds in all directions",
    "the gradient reaches all pixels",
    "logits are finite off the images",
)


@dataclass
class Hunt:
    """A sample while probes run on it.

    Attributes:
        victims: images that the evaluation calls robust.
        alive: which of them nothing has broken, [n] bool.
        by: by position: the probe that broke the image, and its kind.
        ball: where attacks may go.
        fresh: makes copies of the model that have seen nothing.
        passes: forward passes of one image, made so far.
    """

    victims: Victims
    ball: Ball
    fresh: Callable[[], nn.Module]
    attacked: Callable[[], nn.Module]
    alive: Tensor
    by: dict[int, tuple[str, str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    passes: float = 0.0

    def run(self, probe: Probe, among: Tensor | None = None) -> Tensor:
        """Attack the images ``among`` the sample, by default those alive; which of them break, as positions."""
        rows = (self.alive if among is None else among).nonzero()[:, 0]
        broken = [torch.empty(0, dtype=torch.int64)]
        for index in torch.split(rows, ROWS):
            victims = self.victims.rows(index.to(self.victims.x.device))
            model = self.attacked() if probe.kind == STRONGER else self.fresh()
            try:
                final, passes = follow(probe, model, victims, self.ball)
            except Exception:  # a model that cannot be taken apart like this; others probes look at it
                continue
            self.passes += passes
            broken.append(index[self.confirmed(victims, final).cpu()])
        if probe.name not in self.ran:
            self.ran.append(probe.name)
        return torch.cat(broken)

    def confirmed(self, victims: Victims, final: Tensor) -> Tensor:
        """Images that a fresh copy misclassifies as they are or rounded to 8 bits, inside the ball."""
        found = torch.zeros(len(final), dtype=torch.bool, device=final.device)
        for x in (final, ((255 * final).round() / 255).clamp(0, 1)):
            inside = self.ball.lengths(x - victims.x) <= self.ball.eps * (1 + 1e-6) + 1e-6
            found |= inside & victims.misclassified(oracles.logits_of(self.fresh(), x))
            self.passes += len(x)
        return found

    def note(self, rows: Tensor, name: str, kind: str) -> None:
        for row in rows.tolist():
            self.by[row] = (name, kind)
        self.alive[rows] = False


def probe(
    bench: Bench,
    pristine: nn.Module | None,
    data: Dataset,
    protocol: Protocol,
    rows: Sequence[Row],
    *,
    resolution: float,
    level: str = "default",
) -> Probes | None:
    """Probe the robust images of ``rows``; None for a protocol that attacks nothing.

    Args:
        bench: the model as the evaluation used it, in fp32.
        pristine: a copy of it from before its first pass, if it could be copied.
        data, protocol, rows: of the evaluation; rows by id.
        resolution: relative rounding of the dtype of the logits.
        level: a name of ``LEVELS``.
    """
    if protocol.eps == 0 or level == "off":
        return None
    began = time.perf_counter()
    model = bench.model
    assert isinstance(model, nn.Module)
    device = device_of(model)
    position = {id_: number for number, id_ in enumerate(data.ids.tolist())}
    ball = Ball(protocol.eps, protocol.norm)
    fresh = copies_of(pristine, model)

    def load(chosen: Sequence[Row]) -> Victims:
        x, labels, ids = (t.to(device) for t in data.batch(torch.tensor([position[row.id] for row in chosen])))
        targets = torch.tensor([row.target if row.target is not None else -1 for row in chosen], device=device)
        return Victims(x, ids, labels, targets if protocol.targeted else None)

    few = load([rows[i] for i in evenly_spaced(len(rows), FEW).tolist()])
    checks = look_at_structure(bench, fresh, few, ball, max(resolution, torch.finfo(torch.float32).eps))
    misleading = tuple(name for name in MISLEADING if protocol.follows_gradients or "gradient" not in name)
    cost = seconds_of_a_pass(fresh(), few.x)
    made = sum(row.forwards + 2 * row.backwards for row in rows)
    budget = LEVELS[level] * max(SECONDS / cost, SHARE * made)
    robust = [row for row in rows if row.robust]
    if not robust or (protocol.targeted and bench.num_classes < 2):
        return Probes(checks=checks, misleading=misleading, seconds=time.perf_counter() - began)
    scales = (4.0, 2.0, *SCALES) if level == "thorough" else SCALES
    scale, n = plan(scales, budget, len(robust), bench.num_classes, few, ball, bench.seed, fresh())
    sample = [robust[i] for i in evenly_spaced(len(robust), n).tolist()]
    hunt = Hunt(
        victims=load(sample),
        ball=ball,
        fresh=fresh,
        attacked=lambda: bench.attacked if bench.attacked is not bench.model else fresh(),
        alive=torch.ones(n, dtype=torch.bool),
    )
    go(hunt, sample, protocol, bench, scale, budget, len(rows), robust)
    return Probes(
        sample=tuple(row.id for row in sample),
        broken={sample[i].id: hunt.by[i] for i in sorted(hunt.by)},
        ran=tuple(hunt.ran),
        checks=checks,
        misleading=misleading,
        passes=round(hunt.passes),
        seconds=time.perf_counter() - began,
    )


def go(
    hunt: Hunt,
    sample: Sequence[Row],
    protocol: Protocol,
    bench: Bench,
    scale: float,
    budget: float,
    n: int,
    robust: Sequence[Row],
) -> None:
    """Run all probes, then the best ones longer where the number is flagged and the budget allows."""
    seen = [i for i, row in enumerate(sample) if not row.robust_worst_seen and not protocol.targeted]
    hunt.note(torch.tensor(seen, dtype=torch.int64), "the attack's own iterates", STRONGER)
    victims = hunt.victims
    first = stronger(hunt.ball, bench.num_classes, scale)
    parts = oracles.parts_of(hunt.fresh(), victims.x[:2])
    second = dominated(parts, hunt.ball, bench.seed, scale, victims.x[0].numel())
    for each in first:
        hunt.note(hunt.run(each), each.name, each.kind)
    before = hunt.alive.clone()
    for number, images in enumerate(noise_images(victims, hunt.ball, bench.seed, 6)):
        rows = hunt.alive.nonzero()[:, 0]
        for index in torch.split(rows, ROWS):
            chosen = index.to(victims.x.device)
            wrong = hunt.confirmed(victims.rows(chosen), images[chosen])
            hunt.note(index[wrong.cpu()], "random noise", DOMINATED)
        if number == 0:
            hunt.ran.append("random noise")
    for each in second:
        hunt.note(hunt.run(each), each.name, each.kind)
    for each in hardest(hunt.ball, scale):  # what they break too was weakness, not masking
        doubtful = (
            before & ~hunt.alive & torch.tensor([hunt.by.get(i, ("", ""))[1] == DOMINATED for i in range(len(before))])
        )
        hunt.note(hunt.run(each, among=doubtful), each.name, each.kind)
    every = {each.name: each for each in (*first, *second)}
    for number, factor in enumerate((2, 4)):
        share = len(robust) / n * len(hunt.by) / len(sample)
        counts: dict[str, int] = {}
        for name, _ in hunt.by.values():
            counts[name] = counts.get(name, 0) + 1
        best = sorted((name for name in counts if name in every), key=lambda name: -counts[name])[:3]
        for name in best:
            if share > MAX_INFLATION and hunt.alive.any() and hunt.passes < budget:
                again = longer(every[name], factor, 40 + 10 * number + best.index(name))
                hunt.note(hunt.run(again), name, again.kind)


def plan(
    scales: Sequence[float],
    budget: float,
    robust: int,
    num_classes: int,
    few: Victims,
    ball: Ball,
    seed: int,
    model: nn.Module,
) -> tuple[float, int]:
    """Length of the probes as a share of their full length, and size of the sample."""
    parts = oracles.parts_of(model, few.x[:2])
    for scale in scales:
        probes = [*stronger(ball, num_classes, scale), *dominated(parts, ball, seed, scale, few.x[0].numel())]
        each = sum(one.oracle(model).cost * one.walk.steps + 2 for one in probes) + 20
        n = int(budget / each)
        if n >= min(SAMPLE, robust):
            break
    return scale, max(1, min(robust, MAX_SAMPLE, max(n, 16)))


def look_at_structure(
    bench: Bench, fresh: Callable[[], nn.Module], few: Victims, ball: Ball, resolution: float
) -> tuple[Check, ...]:
    """The checks of the structure on a few images."""
    per_pixel = ball.per_pixel(few.x[0].numel())
    away = from_noise(few, Ball(per_pixel, "linf"), 31 * oracles.DRAWS_OF_A_PROBE, bench.seed)
    specimen = Specimen(
        fresh=fresh,
        used=bench.model,  # type: ignore[arg-type]
        x=few.x,
        labels=few.labels,
        ids=few.ids,
        away=away,
        eps=per_pixel,
        resolution=resolution,
        seed=bench.seed,
    )
    return structure(specimen)
