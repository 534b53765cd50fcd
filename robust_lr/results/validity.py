"""Signs of a broken evaluation, read from its rows: passed or failed, the figures behind it, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..protocols.base import Protocol
from ..utils.statistics import mcnemar, wilson
from .ledger import Row

#: share of the images up to which a sign is taken for noise
NOISE = 0.01

#: share of the images whose loss an attack by gradients must raise
MIN_RISING = 0.95

#: share of the images up to which attacks by queries may add to those by gradients (AutoAttack's flag: 0.2 points)
MAX_BLACK_BOX = 0.002

#: two figures of the same images differ where chance explains it less often than this
SIGNIFICANT = 1e-3


@dataclass(frozen=True)
class Check:
    """One sign that was looked for.

    Attributes:
        name: what should hold.
        passed: whether it does; None where it cannot be seen.
        found: the figures behind it.
        advice: what to do where it does not hold.
    """

    name: str
    passed: bool | None
    found: str
    advice: str = ""


Finding = tuple[bool | None, str]


def validity(rows: Sequence[Row], protocol: Protocol) -> tuple[Check, ...]:
    """Every check of ``CHECKS``, in its order."""
    checks = []
    for name, (look, advice) in CHECKS.items():
        passed, found = look(rows, protocol)
        checks.append(Check(name, passed, found, advice if passed is False else ""))
    return tuple(checks)


def is_noise(count: int, n: int) -> bool:
    """True if ``count`` of ``n`` can be so many where the true share is at most ``NOISE``, by its 95 % interval."""
    return wilson(count, n)[0] <= NOISE


def accuracy_above_chance(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """A model at chance has no robustness to lose: its weights, labels or normalization are not those it was trained
    with. It is above chance where the interval of its accuracy is."""
    right, classes = sum(row.clean == row.label for row in rows), len({row.label for row in rows})
    words = f"{right} of {len(rows)} clean images are classified correctly, {classes} classes"
    return (None if classes < 2 else wilson(right, len(rows))[0] * classes > 1), words


def gradients_not_zero(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """An attack stands still where the gradient is zero everywhere, whatever the model would do."""
    moved = [row for row in rows if row.backwards]
    if not moved:
        return None, "the attack took no gradients"
    stuck = sum(2 * row.zero_gradients >= row.backwards + row.steps_skipped for row in moved)
    words = f"zero everywhere in at least half of the steps for {stuck} of {len(moved)} images"
    return is_noise(stuck, len(moved)), words


def loss_rises(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """The attack raises the loss of the true class; a targeted one does it on the way."""
    moved = [row for row in rows if row.backwards and row.distance > 0]
    if not moved:
        return None, "no image was moved by gradients"
    rose = sum(row.loss > row.clean_loss for row in moved)
    return wilson(rose, len(moved))[1] >= MIN_RISING, f"rose for {rose} of {len(moved)} images"


def successes_kept(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Images that were misclassified on the way and are right at the last iterate: worst seen is the safer figure."""
    if protocol.criterion != "last":
        return None, "images leave the attack at their first success"
    lost = sum(row.robust and row.clean == row.label and not row.robust_worst_seen for row in rows)
    return is_noise(lost, len(rows)), f"{lost} of {len(rows)} images are right at the last iterate, wrong on the way"


def successes_confirmed(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """The model itself confirms the successes of its attacked copy (folded, in lower precision) in another pass."""
    if protocol.criterion == "last":
        return None, "no success ends the attack"
    doubted = sum(row.unconfirmed > 0 for row in rows)
    words = f"the model did not confirm a success of the attack for {doubted} of {len(rows)} images"
    return is_noise(doubted, len(rows)), words


def robust_below_clean(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """An attack lowers accuracy; where it raises it, perturbed images are treated otherwise than clean ones."""
    gained = sum(row.robust and row.clean != row.label for row in rows)
    lost = sum(not row.robust and row.clean == row.label for row in rows)
    words = f"{gained} clean mistakes are right after the attack, {lost} correct images wrong"
    return not (gained > lost and mcnemar(gained, lost) < SIGNIFICANT), words


def black_box_adds_little(rows: Sequence[Row], protocol: Protocol) -> Finding:
    """Square breaks few images after the attacks by gradients of a cascade (AutoAttack's own flag)."""
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
