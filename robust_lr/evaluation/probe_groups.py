"""Probes on groups of images: what breaks each image, found for every group by itself.

A group is the unit of work that processes share, so its passes have the same rows whoever computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..results.ledger import Row
from ..results.verdict import DOMINATED, STRONGER
from . import oracles
from .probe_attacks import Ball, Probe, Victims, follow, noise_images

#: images of a group at most
GROUP = 32

#: random images in the ball that are shown for each image
NOISE_IMAGES = 6

#: names of the probes that are no attacks of their own
OWN_ITERATES, RANDOM_NOISE = "the attack's own iterates", "random noise"


@dataclass(frozen=True)
class Subject:
    """The model under the probes.

    Attributes:
        fresh: makes copies of the model that have seen nothing.
        attacked: makes models whose gradients the evaluation's attack follows.
        ball: where attacks may go.
        seed: of random numbers.
    """

    fresh: Callable[[], nn.Module]
    attacked: Callable[[], nn.Module]
    ball: Ball
    seed: int


@dataclass
class Found:
    """Findings of probes on some images.

    Attributes:
        by: by id of each broken image: the probe that broke it, and its kind.
        ran: names of the probes that ran, in their order.
        failed: names of the probes that the model does not allow, such as those that take it apart.
        passes: forward passes of one image that this took.
    """

    by: dict[int, tuple[str, str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    passes: float = 0.0

    def add(self, other: Found) -> None:
        self.by.update(other.by)
        self.ran = list(dict.fromkeys([*self.ran, *other.ran]))
        self.failed = list(dict.fromkeys([*self.failed, *other.failed]))
        self.passes += other.passes


class Group:
    """Images under attack, and which of them still stand.

    Args:
        subject: the model.
        victims: images that the evaluation calls robust.
        found: what is known about them already.
    """

    def __init__(self, subject: Subject, victims: Victims, found: dict[int, tuple[str, str]]):
        self.subject, self.victims = subject, victims
        self.ids = victims.ids.tolist()
        self.found = Found({id_: found[id_] for id_ in self.ids if id_ in found})

    def standing(self) -> Tensor:
        """Positions of the images that nothing has broken."""
        return torch.tensor([i for i, id_ in enumerate(self.ids) if id_ not in self.found.by], dtype=torch.int64)

    def broken_by_dominated(self) -> Tensor:
        """Positions of the images that an attack broke which a sound gradient attack dominates."""
        kinds = {id_: kind for id_, (_, kind) in self.found.by.items()}
        return torch.tensor([i for i, id_ in enumerate(self.ids) if kinds.get(id_) == DOMINATED], dtype=torch.int64)

    def attack(self, probes: Sequence[Probe], among: Callable[[], Tensor] | None = None) -> None:
        """Run ``probes`` one after the other on the images at the positions ``among``, by default those standing."""
        for probe in probes:
            if len(rows := (among or self.standing)()):
                victims = self.victims.rows(rows.to(self.victims.x.device))
                model = self.subject.attacked() if probe.kind == STRONGER else self.subject.fresh()
                try:
                    final, passes = follow(probe, model, victims, self.subject.ball)
                except Exception:  # anybody's code, which not every probe can take apart; others look at it
                    self.found.failed.append(probe.name)
                    continue
                self.found.passes += passes
                self.note(rows, self.is_confirmed(victims, final), probe.name, probe.kind)
            self.found.ran.append(probe.name)

    def show_noise(self) -> None:
        """Show the model random images in the ball."""
        for images in noise_images(self.victims, self.subject.ball, self.subject.seed, NOISE_IMAGES):
            if len(rows := self.standing()):
                index = rows.to(self.victims.x.device)
                confirmed = self.is_confirmed(self.victims.rows(index), images[index])
                self.note(rows, confirmed, RANDOM_NOISE, DOMINATED)
        self.found.ran.append(RANDOM_NOISE)

    def is_confirmed(self, victims: Victims, final: Tensor) -> Tensor:
        """Return True where a fresh copy misclassifies the image as it is or rounded to 8 bits, inside the ball."""
        ball = self.subject.ball
        wrong = torch.zeros(len(final), dtype=torch.bool, device=final.device)
        for x in (final, ((255 * final).round() / 255).clamp(0, 1)):
            inside = ball.lengths(x - victims.x) <= ball.eps * (1 + 1e-6) + 1e-6
            wrong |= inside & victims.misclassified(oracles.logits_of(self.subject.fresh(), x))
            self.found.passes += len(x)
        return wrong

    def note(self, rows: Tensor, broken: Tensor, name: str, kind: str) -> None:
        for row in rows[broken.cpu()].tolist():
            self.found.by[self.ids[row]] = (name, kind)


@dataclass(frozen=True)
class Course:
    """Probes in the order in which a group meets them.

    Attributes:
        stronger: gradient attacks that are stronger than most.
        dominated: attacks that a sound gradient attack dominates.
        hardest: gradient attacks on what only those broke: what they break too is weakness, not masking.
    """

    stronger: Sequence[Probe]
    dominated: Sequence[Probe]
    hardest: Sequence[Probe] = ()
    noise: bool = True

    def run(self, group: Group) -> Found:
        group.attack(self.stronger)
        if self.noise:
            group.show_noise()
        group.attack(self.dominated)
        if self.hardest:
            group.attack(self.hardest, among=group.broken_by_dominated)
        return group.found


def run_groups(
    groups: Iterator[Sequence[Row]],
    load: Callable[[Sequence[Row]], Victims],
    subject: Subject,
    course: Course,
    found: dict[int, tuple[str, str]],
) -> Iterator[Found]:
    """Run ``course`` on groups of rows, whose images ``load`` loads; ``found`` is what is known about them already."""
    for group in groups:
        yield course.run(Group(subject, load(group), found))
