"""Probes attack images that an evaluation calls robust in other ways, and show whether its number can be trusted.

They begin with few images, spaced evenly over the robust ones, and take more only while the verdict is open. Budgets
are counted in forward passes and nominal seconds of work, never timed, so a verdict does not depend on the machine's
load, batch size, processes or resume.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..data.dataset import Dataset, evenly_spaced
from ..protocols.base import Protocol
from ..results.ledger import Row
from ..results.validity import Check
from ..results.verdict import LEVELS, MAX_INFLATION, STRONGER, Probes, inflation_of
from ..utils.contexts import device_of
from ..utils.processes import parallel
from . import oracles
from .fitted_surrogate import fitted_surrogate, surrogate_probes
from .guards import FEW
from .model_under_test import Bench
from .probe_attacks import (
    Ball,
    Probe,
    Victims,
    dominated_probes,
    from_noise,
    hardest_probes,
    lengthen_probe,
    stronger_probes,
)
from .probe_groups import GROUP, OWN_ITERATES, Course, Found, Subject, run_groups
from .structure import Specimen, make_copier, run_structural_checks
from .work import seconds_of_a_pass

#: budget of the probes: nominal seconds, or a share of the evaluation's passes, whichever is more
SECONDS, SHARE = 8.0, 0.1

#: number of images that probes begin with, its maximum and minimum, and the number of groups at the beginning
FIRST_SAMPLE, MAX_SAMPLE, MIN_SAMPLE, FIRST_GROUPS = 64, 256, 16, 2

#: probes stop after this many images without a success; if 14 % of the robust images can be broken, such a sample
#: occurs about once in a thousand evaluations
ENOUGH = 48

#: lengths of probes, as shares of the full length; the longest that the budget allows is used
SCALES = (1.0, 0.5, 0.25)

#: factors by which the best probes are lengthened if a number is flagged, and how many probes are lengthened
LONGER, BEST = (2, 4), 3

#: structural checks whose failure alone makes a number misled; those of gradients only if the attack follows gradients
MISLEADING = (
    "the model keeps no state",
    "same logits in another process",
    "same logits with gradients",
    "same logits in another batch",
    "logits are continuous",
    "the gradient predicts the margin",
    "the gradient holds in all directions",
    "the gradient reaches all pixels",
    "logits are finite off the images",
)


def probe(
    bench: Bench,
    pristine: nn.Module | None,
    data: Dataset,
    protocol: Protocol,
    rows: Sequence[Row],
    *,
    resolution: float,
    level: str = "default",
    processes: int = 0,
) -> Probes | None:
    """Probe the robust images of ``rows``; return None for a protocol that attacks nothing.

    Args:
        bench: the model as the evaluation used it, in fp32.
        pristine: a copy of it from before its first pass, if it could be copied.
        data, protocol, rows: those of the evaluation; rows are sorted by id.
        resolution: relative rounding error of the dtype of the logits.
        level: a name of ``LEVELS``.
        processes: number of processes that share the work, see ``utils.processes.parallel``.
    """
    if protocol.eps == 0 or level == "off":
        return None
    began = time.perf_counter()
    model = bench.model
    assert isinstance(model, nn.Module)
    position = {id_: number for number, id_ in enumerate(data.ids.tolist())}
    ball = Ball(protocol.eps, protocol.norm)
    fresh = make_copier(pristine, model)
    load = partial(load_victims, data, position, protocol.targeted, device_of(model))
    few = load([rows[i] for i in evenly_spaced(len(rows), FEW).tolist()])
    checks = check_structure(bench, fresh, few, ball, max(resolution, torch.finfo(torch.float32).eps), processes > 0)
    misleading = tuple(name for name in MISLEADING if protocol.follows_gradients or "gradient" not in name)
    robust = [row for row in rows if row.robust]
    if not robust or (protocol.targeted and bench.num_classes < 2):
        return Probes(checks=checks, misleading=misleading, seconds=time.perf_counter() - began)
    made = sum(row.forwards + 2 * row.backwards for row in rows)
    budget = LEVELS[level] * max(SECONDS / seconds_of_a_pass(fresh(), few.x), SHARE * made)
    subject = Subject(
        fresh=fresh,
        attacked=lambda: bench.attacked if bench.attacked is not bench.model else fresh(),
        ball=ball,
        seed=bench.seed,
    )
    hunt = Hunt(subject, load, rows, robust, bench.num_classes, protocol, budget, processes)
    hunt.run((4.0, 2.0, *SCALES) if level == "thorough" else SCALES, few)
    sample = sorted(hunt.sample, key=lambda row: row.id)
    return Probes(
        sample=tuple(row.id for row in sample),
        broken={row.id: hunt.found.broken_by[row.id] for row in sample if row.id in hunt.found.broken_by},
        ran=tuple(hunt.found.ran),
        failed=tuple(name for name in hunt.found.failed if name not in hunt.found.ran),
        checks=checks,
        misleading=misleading,
        passes=round(hunt.found.passes),
        seconds=time.perf_counter() - began,
    )


def load_victims(
    data: Dataset, position: dict[int, int], targeted: bool, device: torch.device, chosen: Sequence[Row]
) -> Victims:
    """Load the images of the ``chosen`` rows to ``device``."""
    x, labels, ids = (t.to(device) for t in data.batch(torch.tensor([position[row.id] for row in chosen])))
    targets = torch.tensor([row.target if row.target is not None else -1 for row in chosen], device=device)
    return Victims(x, ids, labels, targets if targeted else None)


class Hunt:
    """Probes on a growing sample of the robust images.

    Args:
        subject: the model.
        load: loads the images of rows.
        rows, robust: all rows of the evaluation, and the rows that it calls robust.
        num_classes: number of classes of the model.
        protocol: the protocol of the evaluation.
        budget: forward passes that probes may take, counted per image.
        processes: number of processes that share the work.
    """

    def __init__(
        self,
        subject: Subject,
        load: Callable[[Sequence[Row]], Victims],
        rows: Sequence[Row],
        robust: Sequence[Row],
        num_classes: int,
        protocol: Protocol,
        budget: float,
        processes: int,
    ):
        self.subject, self.load, self.rows, self.robust = subject, load, rows, robust
        self.num_classes, self.protocol, self.budget, self.processes = num_classes, protocol, budget, processes
        self.sample: list[Row] = []
        self.found = Found()

    def run(self, scales: Sequence[float], few: Victims) -> None:
        """Probe the first images, more while the verdict is open, and the unbroken ones longer if it is bad."""
        plan = self.plan(scales, few)
        chosen = [self.robust[i] for i in evenly_spaced(len(self.robust), plan.images).tolist()]
        first = [chosen[i] for i in evenly_spaced(len(chosen), min(FIRST_SAMPLE, len(chosen))).tolist()]
        known = {row.id for row in first}
        self.attack(first, plan.course)
        if not self.is_flagged() and not (len(first) >= ENOUGH and not self.found.broken_by):
            self.attack([row for row in chosen if row.id not in known], plan.course)
        if not self.found.broken_by:
            self.attack_by_surrogate()
        if self.is_flagged():
            self.attack_longer(plan.course)

    def attack(self, rows: Sequence[Row], course: Course) -> None:
        """Add ``rows`` to the sample, and run ``course`` on them."""
        if not self.protocol.targeted:
            self.found.broken_by.update({row.id: (OWN_ITERATES, STRONGER) for row in rows if not row.robust_worst_seen})
        known = {row.id for row in self.sample}
        self.sample += [row for row in rows if row.id not in known]
        groups = divide_into_groups(rows)
        work = partial(
            run_groups, load=self.load, subject=self.subject, course=course, found=dict(self.found.broken_by)
        )
        for found in parallel(work, groups, self.processes):
            self.found.add(found)

    def attack_by_surrogate(self) -> None:
        """Fit a small network to the model's predictions, and try the results of attacks on it."""
        asked = self.load([self.rows[i] for i in evenly_spaced(len(self.rows), MAX_SAMPLE).tolist()])

        def fit(items: Iterator[int]) -> Iterator[tuple[nn.Module, float]]:
            for _ in items:
                yield fitted_surrogate(self.subject, asked, self.num_classes)

        for surrogate, passes in parallel(fit, [0], self.processes):  # one item runs here, with the threads of attacks
            self.found.passes += passes
            self.attack(self.sample, Course((), surrogate_probes(surrogate, self.subject.ball), noise=False))

    def attack_longer(self, course: Course) -> None:
        """Attack the unbroken images with longer versions of the probes that broke the most."""
        every = {each.name: each for each in (*course.stronger, *course.dominated)}
        for number, factor in enumerate(LONGER):
            before = len(self.found.broken_by)
            standing = [row for row in self.sample if row.id not in self.found.broken_by]
            counts = Counter(name for name, _ in self.found.broken_by.values() if name in every)
            best = [every[name] for name, _ in counts.most_common(BEST)]
            if not standing or not best or self.found.passes >= self.budget:
                return
            again = [lengthen_probe(each, factor, 40 + 10 * number + i) for i, each in enumerate(best)]
            ours = Course(
                [each for each in again if each.kind == STRONGER], [each for each in again if each.kind != STRONGER],
                noise=False,
            )  # fmt: skip
            self.attack(standing, ours)
            if 20 * (len(self.found.broken_by) - before) < len(standing):
                return  # the number has stopped moving

    def is_flagged(self) -> bool:
        """Return True if the interval of the inflation lies above the noise level."""
        broken = [self.found.broken_by[row.id] for row in self.sample if row.id in self.found.broken_by]
        inflation = inflation_of(self.rows, [row.id for row in self.sample], broken)
        return inflation is not None and inflation.interval[0] > MAX_INFLATION

    def plan(self, scales: Sequence[float], few: Victims) -> Plan:
        """Choose the length of the probes and the number of images that fit the budget."""
        model = self.subject.fresh()
        parts = oracles.find_parts(model, few.x[:2])
        for scale in scales:
            course = build_course(parts, self.subject, self.num_classes, scale, few, self.protocol.targeted)
            n = int(self.budget / estimate_cost(course, model))
            if n >= min(FIRST_SAMPLE, len(self.robust)):
                break
        return Plan(course, max(1, min(len(self.robust), MAX_SAMPLE, max(n, MIN_SAMPLE))))


@dataclass(frozen=True)
class Plan:
    """Probes of a length that fits the budget, and the number of images that they may attack."""

    course: Course
    images: int


def build_course(
    parts: oracles.Parts, subject: Subject, num_classes: int, scale: float, few: Victims, targeted: bool
) -> Course:
    """Build all probes with the length ``scale``."""
    pixels = few.x[0].numel()
    return Course(
        stronger_probes(subject.ball, num_classes, scale, targeted),
        dominated_probes(parts, subject.ball, subject.seed, scale, pixels),
        hardest_probes(subject.ball, scale),
    )


def estimate_cost(course: Course, model: nn.Module) -> float:
    """Return the forward passes for one image that nothing breaks."""

    def passes_of(probe: Probe) -> float:
        return probe.oracle(model).cost * probe.walk.steps + 2

    return sum(map(passes_of, (*course.stronger, *course.dominated))) + 20


def divide_into_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Divide ``rows`` into groups of similar size, at least ``FIRST_GROUPS`` of them if there are enough rows."""
    count = max(-(-len(rows) // GROUP), min(FIRST_GROUPS, -(-len(rows) // (GROUP // 4))))
    return [list(rows[i::count]) for i in range(count)] if rows else []


def check_structure(
    bench: Bench, fresh: Callable[[], nn.Module], few: Victims, ball: Ball, resolution: float, forks: bool
) -> tuple[Check, ...]:
    """Run the structural checks on a few images."""
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
        forks=forks,
    )
    return run_structural_checks(specimen)
