"""Checks of an evaluation's rows for signs that the evaluation is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..protocols.base import Protocol
from ..utils.statistics import mcnemar, wilson
from .ledger import Row

#: maximum share of images for which a sign of failure counts as noise
NOISE = 0.01

#: minimum share of images whose loss a gradient attack must move the way it aims
MIN_RISING = 0.95

#: maximum share of images that black-box attacks may break after gradient attacks (AutoAttack's flag: 0.2 points)
MAX_BLACK_BOX = 0.002

#: p-value below which two accuracies on the same images count as different
SIGNIFICANT = 1e-3


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: the condition that should hold.
        passed: whether it holds; None if the rows cannot tell.
        found: the counts behind the outcome, in words.
        advice: what to do if the condition does not hold.
    """

    name: str
    passed: bool | None
    found: str
    advice: str = ""


#: ``passed`` and ``found`` of a check
Finding = tuple[bool | None, str]


def validity(rows: Sequence[Row], protocol: Protocol) -> tuple[Check, ...]:
    """Run every check of ``CHECKS``, in order."""
    checks = []
    for name, (look, advice) in CHECKS.items():
        passed, found = look(rows, protocol)
        checks.append(Check(name, passed, found, advice if passed is False else ""))
    return tuple(checks)


def is_noise(count: int, n: int) -> bool:
    """Return True if the 95 % interval of ``count`` / ``n`` is compatible with a share of at most ``NOISE``."""
    return wilson(count, n)[0] <= NOISE


def accuracy_above_chance(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that the interval of the clean accuracy is above chance.

    A model at chance was probably given other weights, labels or normalization than those of its training.
    """
    right, classes = sum(row.clean == row.label for row in rows), len({row.label for row in rows})
    words = f"{right} of {len(rows)} clean images are classified correctly, {classes} classes"
    return (None if classes < 2 else wilson(right, len(rows))[0] * classes > 1), words


def gradients_not_zero(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that gradients are rarely all zero, because an attack cannot move then, however weak the model is."""
    moved = [row for row in rows if row.backwards]
    if not moved:
        return None, "the attack took no gradients"
    stuck = sum(2 * row.zero_gradients >= row.backwards + row.steps_skipped for row in moved)
    words = f"zero everywhere in at least half of the steps for {stuck} of {len(moved)} images"
    return is_noise(stuck, len(moved)), words


def loss_rises(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that the attack moves the loss that it optimizes.

    An untargeted attack raises the loss of the true class. A targeted attack lowers that of the target, and need not
    raise the other: on an image that the model misclassifies, the way to the target may lead past the true class.
    """
    moved = [row for row in rows if row.backwards and row.distance > 0]
    if not moved:
        return None, "no image was moved by gradients"
    rose = sum(_gain(row) > 0 for row in moved)
    words = f"the target's loss fell for {rose}" if protocol.targeted else f"rose for {rose}"
    return wilson(rose, len(moved))[1] >= MIN_RISING, f"{words} of {len(moved)} images"


def _gain(row: Row) -> float:
    """Return how far the final image is nearer to the attack's aim than the clean one, in cross-entropy."""
    if row.target_loss is None or row.clean_target_loss is None:
        return row.loss - row.clean_loss
    return row.clean_target_loss - row.target_loss


def successes_kept(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that few images are misclassified at some iterate but right at the last; in worst seen they are broken."""
    if protocol.criterion != "last":
        return None, "images leave the attack at their first success"
    lost = sum(row.robust and row.clean == row.label and not row.robust_worst_seen for row in rows)
    return is_noise(lost, len(rows)), f"{lost} of {len(rows)} images are right at the last iterate, wrong on the way"


def successes_confirmed(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that the model itself confirms successes on its attacked copy, folded or in lower precision."""
    if protocol.criterion == "last":
        return None, "no success ends the attack"
    doubted = sum(row.unconfirmed > 0 for row in rows)
    words = f"the model did not confirm a success of the attack for {doubted} of {len(rows)} images"
    return is_noise(doubted, len(rows)), words


def robust_below_clean(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that the attack does not raise the accuracy, as it does if the model treats perturbed images specially."""
    gained = sum(row.robust and row.clean != row.label for row in rows)
    lost = sum(not row.robust and row.clean == row.label for row in rows)
    words = f"{gained} clean mistakes are right after the attack, {lost} correct images wrong"
    return not (gained > lost and mcnemar(gained, lost) < SIGNIFICANT), words


def black_box_adds_little(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Check that black-box attacks break few images after a cascade's gradient attacks, as AutoAttack does."""
    parts = protocol.attacks()
    boxes = {part.name for number, part in enumerate(parts) if number and not part.follows_gradients}
    if not boxes or not parts[0].follows_gradients:
        return None, "no attack by queries comes after one by gradients"
    broken = sum(row.broken_by in boxes for row in rows)
    words = f"attacks by queries break {broken} of {len(rows)} images after those by gradients"
    return broken <= MAX_BLACK_BOX * len(rows), words


CHECKS: dict[str, tuple[Callable[[Sequence[Row], Protocol], Finding], str]] = {
    "clean accuracy above chance": (
        accuracy_above_chance,
        "check weights, labels and normalization, or use more images",
    ),
    "gradients are not zero": (
        gradients_not_zero,
        "use the margin or DLR loss, or make the model differentiable (BPDA)",
    ),
    "the loss rises": (loss_rises, "compare the gradient with finite differences; smaller steps may help"),
    "successes are kept": (successes_kept, "report worst seen, or set criterion = worst"),
    "successes are confirmed": (successes_confirmed, "the model is not deterministic: attack its average (EOT)"),
    "black box adds little": (
        black_box_adds_little,
        "the gradients may be masked: see the verdict, and attack through BPDA or the network inside",
    ),
    "robust accuracy below clean": (robust_below_clean, "look for state, detection or leaked labels in the model"),
}
