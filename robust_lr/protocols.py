"""Named attack protocols. A protocol fixes every value that changes a robustness number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .attacks.checks import check_attack
from .errors import InputError
from .text import check_name, choose

STARTS = ("uniform", "clean")
TARGETS = ("uniform", "least-likely")


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient descent on the cross-entropy in the L-infinity ball; the values of ``attacks.pgd_linf``.

    Args:
        eps: radius in pixels of [0, 1].
        step_size: same unit.
        steps: gradient steps.
        targeted: towards a target class instead of away from the true one.
        restarts: independent starts; an image counts as broken if any of them breaks it.
        start: "uniform" in the ball, clipped to [0, 1], or the "clean" image.
        target: of a targeted attack: "uniform" over the wrong classes, or the "least-likely" one.
        name: for reports.
        source: where the values come from.

    Raises:
        InputError: a value out of range.
    """

    eps: float
    step_size: float
    steps: int
    targeted: bool = False
    restarts: int = 1
    start: str = "uniform"
    target: str = "uniform"
    name: str = "custom"
    source: str = "user"

    def __post_init__(self) -> None:
        check_attack(eps=self.eps, step_size=self.step_size, steps=self.steps)
        check_name("start", self.start, STARTS)
        check_name("target", self.target, TARGETS)
        if self.target != "uniform" and not self.targeted:
            raise InputError(f"target = {self.target!r} is for targeted attacks: set targeted = true as well")
        if not isinstance(self.restarts, int) or self.restarts < 1:
            raise InputError(f"restarts = {self.restarts}: must be a whole number, at least 1")
        if self.start == "clean" and self.restarts > 1:
            raise InputError(f"restarts = {self.restarts} from the clean image are all the same: use start = 'uniform'")

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and where they come from; ``target`` only where it plays a part."""
        values = asdict(self)
        if not self.targeted:
            del values["target"]
        return {"attack": "pgd", "norm": "linf", "loss": "cross-entropy", "criterion": "last iterate", **values}

    def __str__(self) -> str:
        kind = f"targeted ({self.target})" if self.targeted else "untargeted"
        return f"{kind} {self.values_in_words()}"

    def values_in_words(self) -> str:
        """The values that targeted and untargeted attacks share."""
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return (
            f"PGD, eps {levels(self.eps)}, step {levels(self.step_size)}, "
            f"{self.steps} steps, {self.start} start{restarts}"
        )


def levels(value: float) -> str:
    """A pixel distance as people write it: 0.0627... -> "16/255"."""
    return f"{value * 255:.4g}/255"


_LRNET = "Hu et al. 2019 (LR-Net), appendix: values of the ALP release, 16 steps"

PROTOCOLS: dict[str, PGD] = {
    protocol.name: protocol
    for protocol in (
        PGD(name="none", eps=0.0, step_size=0.0, steps=0, start="clean", source="no attack: clean images"),
        PGD(name="lrnet-train", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-targeted", eps=16 / 255, step_size=1 / 255, steps=16, targeted=True, source=_LRNET),
        PGD(name="lrnet-untargeted", eps=16 / 255, step_size=1 / 255, steps=16, source=_LRNET),
        PGD(
            name="madry-cifar10", eps=8 / 255, step_size=2 / 255, steps=20, source="Madry et al. 2018, CIFAR-10, PGD-20"
        ),
    )
}


def get(name: str) -> PGD:
    """The protocol of that name; InputError, with the list, if there is none."""
    return choose("protocol", name, PROTOCOLS)
