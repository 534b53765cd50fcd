"""PGD as a protocol, for evaluations and for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import starts, targets
from ..attacks.arguments import check_attack, check_eot
from ..attacks.losses import LOSSES, Objective
from ..attacks.pgd import ProjectedGradient, pgd_l2, pgd_linf
from ..attacks.transferable import diversify, smooth_gradient
from ..utils.checks import check_name, check_whole
from ..utils.contexts import Model
from ..utils.errors import InputError
from ..utils.rng import DRAWS
from .base import TARGETS, StepwiseProtocol, convert_fractions, format_distance

STARTS = ("uniform", "clean", "normal")
LABELS = ("true", "predicted")
#: maximum size of the kernel that gradients are convolved with
MAX_SMOOTHING = 63
CRITERIA = ("last", "worst")


@dataclass(frozen=True, kw_only=True)
class PGD(StepwiseProtocol):
    """Projected gradient descent; the values of ``attacks.pgd_linf`` and ``attacks.pgd_l2``.

    Args:
        eps: radius of the ball, in pixels of [0, 1].
        step_size: same unit.
        steps: gradient steps.
        norm: norm of the ball, "linf" or "l2".
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
        diversity: probability with which each gradient is taken through the image shrunk and padded at random (DI-FGSM,
            Xie et al. 2019).
        smoothing: size of the Gaussian kernel that gradients are convolved with, odd (TI-FGSM, Dong et al. 2019); 0 is
            none.
        eot: passes of a random model that each gradient is averaged over; a deterministic one makes a single pass.
        record: numbers of steps at which the figures are recorded as well, a curve from one trajectory.
        name: for reports.
        source: origin of the values.

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
    diversity: float = 0.0
    smoothing: int = 0
    eot: int = 1
    record: tuple[int, ...] = ()
    name: str = "custom"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, ("linf", "l2"))
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
        check_eot(self.eot)
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity = {self.diversity}: a probability is needed, 0 to 1")
        check_whole(0, smoothing=self.smoothing)
        if self.smoothing and (self.smoothing % 2 == 0 or self.smoothing > MAX_SMOOTHING):
            raise InputError(f"smoothing = {self.smoothing}: 0, or an odd size of at most {MAX_SMOOTHING}, is needed")
        if self.diversity and self.restarts * (self.steps + 1) >= DRAWS:
            raise InputError(
                f"restarts = {self.restarts} of {self.steps} steps: at most {DRAWS} draws are keyed in all"
            )
        if self.start == "clean" and self.restarts > 1:
            raise InputError(f"restarts = {self.restarts} from the clean image are all the same: use start = 'uniform'")
        if list(self.record) != sorted(set(self.record)) or not all(0 <= step <= self.steps for step in self.record):
            raise InputError(f"record = {list(self.record)}: increasing numbers from 0 to {self.steps} are needed")

    @property
    def objective(self) -> Objective:
        """The objective that the attack ascends."""
        return LOSSES[self.loss]

    @property
    def follows_gradients(self) -> bool:
        """True if the attack uses gradients of the model."""
        return self.steps > 0

    @property
    def needs_targets(self) -> bool:
        """True if the targets must be passed to ``evaluate``."""
        return self.targeted and self.target == "given"

    def with_given_targets(self) -> PGD:
        """Return the same attack with targets that are passed to ``evaluate``; InputError for an untargeted one."""
        return replace(self, target="given") if self.targeted else super().with_given_targets()

    def goals(
        self, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
    ) -> Tensor:
        """Return the classes of the attack's loss, [N] int64: targets if ``targeted``, otherwise labels."""
        if self.targeted:
            return targets.choose_targets(self.target, model, x, labels, ids, num_classes, seed=seed, draw=draw)
        if self.label == "predicted":
            with torch.no_grad():
                return model(x).argmax(1)
        return labels

    def starts(self, x: Tensor, ids: Tensor, *, seed: int, draw: int | Tensor = 0) -> Tensor:
        """Return first iterates, like ``x`` [N, C, H, W]; ``draw`` is the number of the restart or epoch."""
        if self.start == "clean":
            return starts.clean(x)
        if self.start == "normal":
            return starts.around(x, ids, self.eps, seed=seed, draw=draw)
        return starts.in_ball(x, ids, self.eps, self.norm, seed=seed, draw=draw)

    def stepwise(self, seed: int) -> ProjectedGradient:
        """Return the attack as a sequence of queries."""
        return ProjectedGradient(
            self.norm, self.eps, self.step_size, self.steps, self.momentum, is_memoryless=not self.diversity
        )

    def evaluate_query(
        self,
        model: Model,
        query: Tensor,
        rows: Mapping[str, Tensor],
        targets: Tensor | None,
        needs_gradient: bool,
        *,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and objective at ``query``, and the gradient there, or through a diverse form of it."""
        if not self.diversity:
            seen = super().evaluate_query(model, query, rows, targets, needs_gradient, seed=seed)
            return (*seen[:2], smooth_gradient(seen[2], self.smoothing)) if self.smoothing else seen
        draws = rows["draw"] * (self.steps + 1) + rows["step"]

        def through(x: Tensor) -> Tensor:
            return model(diversify(x, rows["id"], draws, self.diversity, seed=seed))

        _, _, gradient = super().evaluate_query(through, query, rows, targets, needs_gradient, seed=seed)
        logits, loss, _ = super().evaluate_query(model, query, rows, targets, False, seed=seed)
        return logits, loss, smooth_gradient(gradient, self.smoothing) if self.smoothing else gradient

    def passes_per_query(self, num_classes: int) -> tuple[int, int]:
        """Return the numbers of forward and backward passes that one query takes."""
        return 1 + (self.diversity > 0), 1

    def classes(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the classes that the attack moves away from and towards, [N] each; -1 if there is none."""
        return rows["clean"] if self.label == "predicted" else rows["label"], rows["target"]

    def perturb(
        self,
        model: Model,
        x: Tensor,
        labels: Tensor,
        goals: Tensor,
        ids: Tensor,
        *,
        seed: int,
        draw: int = 0,
        start: Tensor | None = None,
        loss: Objective | None = None,
        end_at_cycles: bool = False,
    ) -> Tensor:
        """Attack the images ``x`` [N, C, H, W]; ``goals`` are the labels or the targets.

        ``start`` and ``loss`` override the protocol's; ``end_at_cycles`` as in ``attacks.pgd_linf``.

        Raises:
            InputError: ``diversity`` or ``smoothing``, which are for evaluations only.
        """
        if self.diversity or self.smoothing:
            raise InputError("diversity and smoothing are for evaluations: train without them")
        pgd = pgd_linf if self.norm == "linf" else pgd_l2
        return pgd(
            model,
            x,
            goals,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            targeted=self.targeted,
            start=self.starts(x, ids, seed=seed, draw=draw) if start is None else start,
            loss=self.objective if loss is None else loss,
            momentum=self.momentum,
            true_labels=labels,
            end_at_cycles=end_at_cycles,
            eot=self.eot,
        )

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source; ``target`` or ``label`` where it plays a part."""
        values = {"attack": "pgd", **asdict(self), "record": list(self.record)}
        del values["label" if self.targeted else "target"]
        return values

    def __str__(self) -> str:
        kind = f"targeted ({self.target})" if self.targeted else "untargeted"
        return f"{kind} {self.values_in_words()}"

    def values_in_words(self) -> str:
        """Describe the values that targeted and untargeted attacks share, leaving out usual ones."""
        unusual = [
            *[f"{self.loss} loss"] * (self.loss != "cross-entropy"),
            *[f"momentum {self.momentum:g}"] * (self.momentum > 0),
            *[f"diversity {self.diversity:g}"] * (self.diversity > 0),
            *[f"smoothing {self.smoothing}"] * (self.smoothing > 0),
            *[f"{self.label} label"] * (self.label != "true"),
            *[f"{self.restarts} restarts"] * (self.restarts > 1),
            *[f"gradients over {self.eot} draws"] * (self.eot > 1),
            *["worst seen"] * (self.criterion == "worst"),
        ]
        return ", ".join(
            [
                "PGD",
                f"eps {format_distance(self.eps, self.norm)}",
                f"step {format_distance(self.step_size, self.norm)}",
                f"{self.steps} steps",
                f"{self.start} start",
                *unusual,
            ]
        )
