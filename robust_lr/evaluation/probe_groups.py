"""Run probes on groups of images and find what breaks each image.

Processes share the work by whole groups, so a group's passes have the same rows whichever process computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..results.ledger import Row
from ..results.verdict import DOMINATED, STRONGER
from . import oracles
from .probe_attacks import Ball, Probe, Victims, noise_images, run_probe

#: maximum number of images in a group
GROUP = 32

#: number of random images in the ball that are tried for each image
NOISE_IMAGES = 6

#: names of the findings that do not come from an attack
OWN_ITERATES, RANDOM_NOISE = "the attack's own iterates", "random noise"


@dataclass(frozen=True)
class Subject:
    """The model under the probes.

    Attributes:
        fresh: makes copies of the model that have not seen any image.
        attacked: makes copies of the model whose gradients the evaluation's attack follows.
        ball: the ball that attacks stay in.
        seed: seed of random numbers.
    """

    fresh: Callable[[], nn.Module]
    attacked: Callable[[], nn.Module]
    ball: Ball
    seed: int


@dataclass
class Found:
    """Findings of probes on some images.

    Attributes:
        broken_by: the probe that broke each image, and its kind, by image id.
        ran: names of the probes that ran, in order.
        failed: names of the probes that do not work with the model, such as those that take it apart.
        passes: forward passes taken, counted per image.
    """

    broken_by: dict[int, tuple[str, str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    passes: float = 0.0

    def add(self, other: Found) -> None:
        self.broken_by.update(other.broken_by)
        self.ran = list(dict.fromkeys([*self.ran, *other.ran]))
        self.failed = list(dict.fromkeys([*self.failed, *other.failed]))
        self.passes += other.passes


class Group:
    """Images under attack, and which of them are still unbroken.

    Args:
        subject: the model.
        victims: images that the evaluation calls robust.
        found: what earlier probes found, by image id.
    """

    def __init__(self, subject: Subject, victims: Victims, found: dict[int, tuple[str, str]]):
        self.subject, self.victims = subject, victims
        self.ids = victims.ids.tolist()
        self.found = Found({id_: found[id_] for id_ in self.ids if id_ in found})

    def positions_standing(self) -> Tensor:
        """Return the positions of the images that nothing has broken."""
        return torch.tensor([i for i, id_ in enumerate(self.ids) if id_ not in self.found.broken_by], dtype=torch.int64)

    def positions_broken_by_dominated(self) -> Tensor:
        """Return the positions of the images broken by an attack that a sound gradient attack dominates."""
        kinds = {id_: kind for id_, (_, kind) in self.found.broken_by.items()}
        return torch.tensor([i for i, id_ in enumerate(self.ids) if kinds.get(id_) == DOMINATED], dtype=torch.int64)

    def attack(self, probes: Sequence[Probe], among: Callable[[], Tensor] | None = None) -> None:
        """Run ``probes`` one after the other on the images at the positions ``among``; default: the unbroken ones."""
        for probe in probes:
            if len(rows := (among or self.positions_standing)()):
                victims = self.victims.select(rows.to(self.victims.x.device))
                model = self.subject.attacked() if probe.kind == STRONGER else self.subject.fresh()
                try:
                    final, passes = run_probe(probe, model, victims, self.subject.ball)
                except Exception:  # not every probe works with every model; other probes still run
                    self.found.failed.append(probe.name)
                    continue
                self.found.passes += passes
                self.record_broken(rows, self.is_confirmed(victims, final), probe.name, probe.kind)
            self.found.ran.append(probe.name)

    def show_noise(self) -> None:
        """Try random images in the ball on the model."""
        for images in noise_images(self.victims, self.subject.ball, self.subject.seed, NOISE_IMAGES):
            if len(rows := self.positions_standing()):
                index = rows.to(self.victims.x.device)
                confirmed = self.is_confirmed(self.victims.select(index), images[index])
                self.record_broken(rows, confirmed, RANDOM_NOISE, DOMINATED)
        self.found.ran.append(RANDOM_NOISE)

    def is_confirmed(self, victims: Victims, final: Tensor) -> Tensor:
        """Return True where a fresh copy misclassifies the image, exact or rounded to 8 bits, inside the ball."""
        ball = self.subject.ball
        wrong = torch.zeros(len(final), dtype=torch.bool, device=final.device)
        for x in (final, ((255 * final).round() / 255).clamp(0, 1)):
            inside = ball.lengths(x - victims.x) <= ball.eps * (1 + 1e-6) + 1e-6
            wrong |= inside & victims.is_misclassified(oracles.logits_of(self.subject.fresh(), x))
            self.found.passes += len(x)
        return wrong

    def record_broken(self, rows: Tensor, broken: Tensor, name: str, kind: str) -> None:
        for row in rows[broken.cpu()].tolist():
            self.found.broken_by[self.ids[row]] = (name, kind)


@dataclass(frozen=True)
class Course:
    """The probes for a group, in order.

    Attributes:
        stronger: gradient attacks that are stronger than most.
        dominated: attacks that a sound gradient attack dominates.
        hardest: gradient attacks on images that only dominated attacks broke: an image that these break as well shows
            a weak attack, not masked gradients. In a targeted evaluation they run without targets, too: noise can push
            an image over the nearest border, from which a sound attack on another target moves away.
        noise: whether random images in the ball are tried.
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
            group.attack(self.hardest, among=group.positions_broken_by_dominated)
        if self.hardest and group.victims.targets is not None:
            untargeted = Group(group.subject, replace(group.victims, targets=None), group.found.broken_by)
            untargeted.attack(
                [replace(each, name=f"untargeted {each.name}") for each in self.hardest],
                among=untargeted.positions_broken_by_dominated,
            )
            group.found.add(untargeted.found)
        return group.found


def run_groups(
    groups: Iterator[Sequence[Row]],
    load: Callable[[Sequence[Row]], Victims],
    subject: Subject,
    course: Course,
    found: dict[int, tuple[str, str]],
) -> Iterator[Found]:
    """Run ``course`` on groups of rows, whose images ``load`` loads; ``found`` holds the earlier findings by id."""
    for group in groups:
        yield course.run(Group(subject, load(group), found))
