"""Signs of a broken evaluation, read from its rows: passed or failed, with the figures behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..protocols.autoattack import Protocol
from .ledger import Row

#: share of the images up to which a sign is taken for noise
NOISE = 0.01


@dataclass(frozen=True)
class Check:
    """What was looked for, whether it is as it should be (None: it could not be seen), and what was found."""

    name: str
    passed: bool | None
    found: str


def validity(rows: Sequence[Row], protocol: Protocol) -> tuple[Check, ...]:
    """Every check of ``CHECKS``, in its order."""
    return tuple(Check(name, *look(rows, protocol)) for name, look in CHECKS.items())


Finding = tuple[bool | None, str]


def accuracy(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """A model at chance has no robustness to lose: weights, labels or normalization are not those of its training."""
    right, classes = sum(row.clean == row.label for row in rows), len({row.label for row in rows})
    words = f"{right} of {len(rows)} images are right when clean, {classes} classes"
    return (None if classes < 2 else right * classes > len(rows)), words


def gradients(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Where the gradient is zero everywhere an attack stands still, whatever the model would do."""
    walked = [row for row in rows if row.backwards]
    if not walked:
        return None, "the attack took no gradients"
    stuck = sum(2 * row.zero_gradients >= row.backwards for row in walked)
    return (
        stuck <= NOISE * len(walked),
        f"zero everywhere in half of the steps or more for {stuck} of {len(walked)} images",
    )


def loss(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """The attack raises the loss of the true class, for most images; a targeted one does it on the way."""
    walked = [row for row in rows if row.backwards and row.distance > 0]
    if not walked:
        return None, "no image was moved by gradients"
    rose = sum(row.loss > row.clean_loss for row in walked)
    return 2 * rose > len(walked), f"rose for {rose} of {len(walked)} images"


def converged(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """An attack that still breaks images in the last quarter of its steps would break more with more steps."""
    if protocol.steps < 4 or not any(row.backwards for row in rows) or hasattr(protocol, "parts"):
        return None, "fewer than 4 steps by gradients, or attacks of several kinds"
    late = sum(row.first_wrong is not None and row.first_wrong > 0.75 * protocol.steps for row in rows)
    return (
        late <= NOISE * len(rows),
        f"{late} of {len(rows)} images were first misclassified in the last quarter of {protocol.steps} steps",
    )


def kept(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Images that were misclassified on the way and are right at the last iterate: worst seen is the safer figure."""
    if protocol.criterion != "last":
        return None, "images leave the attack at their first success"
    lost = sum(row.robust and row.clean == row.label and not row.robust_worst_seen for row in rows)
    return lost <= NOISE * len(rows), f"{lost} of {len(rows)} images are right at the last iterate, wrong on the way"


def confirmed(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """What the attacked model (folded, in lower precision) calls a success, the model itself does in another pass."""
    if protocol.criterion == "last":
        return None, "no success ends the attack"
    doubted = sum(row.unconfirmed > 0 for row in rows)
    return (
        doubted <= NOISE * len(rows),
        f"the model did not confirm a success of the attack for {doubted} of {len(rows)} images",
    )


CHECKS: dict[str, Callable[[Sequence[Row], Protocol], Finding]] = {
    "clean accuracy above chance": accuracy,
    "gradients are not zero": gradients,
    "the loss rises": loss,
    "the attack has converged": converged,
    "successes are kept": kept,
    "successes are confirmed": confirmed,
}
