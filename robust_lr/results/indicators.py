"""Indicators of attack failure (Pintor et al. 2022), from the rows of an evaluation and the findings of its probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..protocols.base import Protocol
from .ledger import Row
from .validity import Check, Finding, is_noise
from .verdict import STRONGER, Probes

#: share of an attack's steps that come before its last quarter
LAST_QUARTER = 0.75


def indicators(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> tuple[Check, ...]:
    """Return all six checks in the paper's order; a check passes if there is no sign of failure."""
    checks = []
    for name, (look, advice) in INDICATORS.items():
        passed, found = look(rows, protocol, probes)
        checks.append(Check(name, passed, found, advice if passed is False else ""))
    return tuple(checks)


def unavailable_gradients(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for steps at which the whole gradient was zero."""
    moved = [row for row in rows if row.backwards and row.robust]
    if not moved:
        return None, "no robust image was attacked by gradients"
    without = sum(row.zero_gradients > 0 for row in moved)
    return is_noise(without, len(moved)), f"zero at some step for {without} of {len(moved)} robust images"


def unstable_predictions(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for logits that jump under imperceptibly small changes of the image."""
    return from_structure(probes, "logits are continuous")


def silent_success(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for images that an earlier iterate broke, but not the last one."""
    silent = sum(row.robust and row.clean == row.label and not row.robust_worst_seen for row in rows)
    words = f"{silent} of {len(rows)} images were misclassified at an earlier iterate, not at the last"
    return is_noise(silent, len(rows)), words


def incomplete_optimization(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for images that more steps would break, by stronger probes, else by first successes late in the attack."""
    if probes is not None and probes.sample:
        more = sum(kind == STRONGER for _, kind in probes.broken.values())
        words = f"stronger gradient attacks break {more} of {len(probes.sample)} robust images"
        return is_noise(more, len(probes.sample)), words
    broken = [row for row in rows if row.first_wrong is not None and row.clean == row.label]
    if not broken or protocol.steps < 4:
        return None, "the attack broke no image, or has fewer than four steps"
    late = sum((row.first_wrong or 0) > LAST_QUARTER * protocol.steps for row in broken)
    return is_noise(late, len(rows)), f"{late} of {len(broken)} successes came in the last quarter of the steps"


def transfer_failure(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for successes on the attacked copy of the model that the model itself does not confirm."""
    doubted = sum(row.unconfirmed > 0 for row in rows)
    return is_noise(doubted, len(rows)), f"the model did not confirm a success for {doubted} of {len(rows)} images"


def unconstrained_failure(rows: Sequence[Row], protocol: Protocol, probes: Probes | None) -> Finding:
    """Check for gradients that do not predict how the margin changes, so that the attack fails at any eps."""
    return from_structure(probes, "the gradient predicts the margin")


def from_structure(probes: Probes | None, name: str) -> Finding:
    """Return the finding of the probes' structural check ``name``."""
    for check in () if probes is None else probes.checks:
        if check.name == name:
            return check.passed, check.found
    return None, "no probes were run"


INDICATORS: dict[str, tuple[Callable[[Sequence[Row], Protocol, Probes | None], Finding], str]] = {
    "unavailable gradients": (unavailable_gradients, "use the margin loss, or make the model differentiable (BPDA)"),
    "unstable predictions": (unstable_predictions, "attack the average over the noise (EOT)"),
    "silent success": (silent_success, "count the worst iterate seen"),
    "incomplete optimization": (incomplete_optimization, "more steps, momentum, restarts"),
    "transfer failure": (transfer_failure, "attack the model itself, in full precision"),
    "unconstrained attack failure": (unconstrained_failure, "check the gradient against finite differences"),
}
