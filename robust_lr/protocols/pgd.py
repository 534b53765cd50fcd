"""PGD as a protocol, a frozen record that fixes every value that changes a robustness number; and sweeps of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..attacks.arguments import check_attack
from ..attacks.losses import LOSSES
from ..utils.checks import check_name, check_whole
from ..utils.errors import InputError
from .base import NORMS, length

STARTS = ("uniform", "clean", "normal")
TARGETS = ("uniform", "least-likely", "given")
LABELS = ("true", "predicted")
CRITERIA = ("last", "worst")


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient descent; the values of ``attacks.pgd_linf`` and ``attacks.pgd_l2``.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        step_size: same unit.
        steps: gradient steps.
        norm: of the ball, "linf" or "l2".
        loss: "cross-entropy", "margin" (Carlini and Wagner 2017) or "dlr" (Croce and Hein 2020).
        momentum: decay factor of the gradients that came before (MI-FGSM, Dong et al. 2018); 0 is plain PGD.
        targeted: towards a target class instead of away from a label.
        label: that an untargeted attack moves away from: the "true" one, or the "predicted" one as in the ALP release,
            which flatters the defense where the clean prediction is wrong.
        restarts: independent starts; an image counts as broken if any of them breaks it.
        start: "uniform" in the ball, clipped to [0, 1], the "clean" image, or "normal" around it with a standard
            deviation of 0.001 (TRADES, Zhang et al. 2019: their code).
        target: of a targeted attack: "uniform" over the wrong classes, the "least-likely" one, or the one "given" to
            ``evaluate``.
        criterion: what the figure counts. "last": the last iterates, as in the paper; worst seen is reported too.
            "worst": the worst iterate seen, so that an image leaves the attack as soon as this is decided (targeted:
            the target is reached, untargeted: it is misclassified); last iterates are then not known.
        record: numbers of steps at which the figures are recorded as well, a curve from one trajectory.
        name: for reports.
        source: where the values come from.

    Raises:
        InputError: a value out of range.
    """

    eps: float
    step_size: float
    steps: int
    norm: str = "linf"
    loss: str = "cross-entropy"
    momentum: float = 0.0
    targeted: bool = False
    label: str = "true"
    restarts: int = 1
    start: str = "uniform"
    target: str = "uniform"
    criterion: str = "last"
    record: tuple[int, ...] = ()
    name: str = "custom"
    source: str = "user"

    def __post_init__(self) -> None:
        check_name("norm", self.norm, NORMS)
        check_attack(eps=self.eps, step_size=self.step_size, steps=self.steps, norm=self.norm)
        check_name("loss", self.loss, LOSSES)
        check_name("start", self.start, STARTS)
        check_name("target", self.target, TARGETS)
        check_name("label", self.label, LABELS)
        check_name("criterion", self.criterion, CRITERIA)
        if not 0 <= self.momentum < float("inf"):
            raise InputError(f"momentum = {self.momentum}: must be 0 (none) or more; MI-FGSM has 1")
        if self.target != "uniform" and not self.targeted:
            raise InputError(f"target = {self.target!r} is for targeted attacks: set targeted = true as well")
        if self.label != "true" and self.targeted:
            raise InputError(f"label = {self.label!r} is for untargeted attacks: set targeted = false as well")
        check_whole(1, restarts=self.restarts)
        if self.start == "clean" and self.restarts > 1:
            raise InputError(f"restarts = {self.restarts} from the clean image are all the same: use start = 'uniform'")
        if list(self.record) != sorted(set(self.record)) or not all(0 <= step <= self.steps for step in self.record):
            raise InputError(f"record = {list(self.record)}: increasing numbers from 0 to {self.steps} are needed")

    @property
    def aimed(self) -> bool:
        """Whether the loss takes a target."""
        return self.targeted

    @property
    def by_gradients(self) -> bool:
        """Whether the attack follows gradients of the model."""
        return self.steps > 0

    def values(self) -> dict[str, Any]:
        """Every value that changes a number, and its source; ``target`` or ``label`` where it plays a part."""
        values = {"attack": "pgd", **asdict(self), "record": list(self.record)}
        del values["label" if self.targeted else "target"]
        return values

    def __str__(self) -> str:
        kind = f"targeted ({self.target})" if self.targeted else "untargeted"
        return f"{kind} {self.values_in_words()}"

    def values_in_words(self) -> str:
        """The values that targeted and untargeted attacks share, where they are not the usual ones."""
        unusual = [
            *[f"{self.loss} loss"] * (self.loss != "cross-entropy"),
            *[f"momentum {self.momentum:g}"] * (self.momentum > 0),
            *[f"{self.label} label"] * (self.label != "true"),
            *[f"{self.restarts} restarts"] * (self.restarts > 1),
            *["worst seen"] * (self.criterion == "worst"),
        ]
        return ", ".join(
            [
                "PGD",
                f"eps {length(self.eps, self.norm)}",
                f"step {length(self.step_size, self.norm)}",
                f"{self.steps} steps",
                f"{self.start} start",
                *unusual,
            ]
        )
