"""Skip whole periods when the iterates of an image repeat: the ledger gets the same rows for fewer passes.

Nothing is guessed. Every query of a cycle has been seen, so under the worst-seen criterion the verdict is final. Under
the last-iterate criterion the image continues from the step in the same phase and ends on the true last iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..attacks import cycles
from ..attacks.losses import cross_entropy
from ..attacks.stepwise import Stepwise, evaluate_objective, is_memoryless
from ..protocols.base import Protocol, StepwiseProtocol
from .batch_state import Rows

#: prefix of the columns that follow an image's iterates
CYCLE = "cycle."

ON = "on"

#: shorter attacks end before a cycle can be confirmed and are not followed; the test of the model costs three passes
MIN_STEPS = 32


def decide_cycle_detection(
    protocols: Sequence[Protocol], wanted: bool, fixed: bool, device: torch.device, repeatable: Callable[[], bool]
) -> str:
    """Return ``ON`` if cycles can be detected for certain, else "off: " and the reason, for the result."""
    attacks = [part.stepwise(0) for p in protocols for part in p.attacks() if isinstance(part, StepwiseProtocol)]
    if not any(map(is_memoryless, attacks)):
        return "off: no attack with fixed steps"
    if not wanted:
        return "off: not wanted"
    if device.type != "cpu":
        return f"off: arithmetic on {device.type} may differ from one pass to the next"
    if not fixed:
        return "off: without a fixed compute batch, arithmetic depends on the number of rows"
    if max(attack.steps for attack in attacks if is_memoryless(attack)) < MIN_STEPS:
        return f"off: fewer than {MIN_STEPS} steps"
    return ON if repeatable() else "off: the model gives an image other bits in another pass"


def is_repeatable(model: nn.Module, x: Tensor, labels: Tensor) -> bool:
    """Return True if an image's logits and gradients are the same to the bit in another place and beside other images.

    Args:
        model: the model that gradients are taken through.
        x, labels: images [n, C, H, W], as many as in a pass of the attack, and their classes.
    """
    half = (len(x) + 1) // 2
    other = torch.cat([(x[half:] + 0.5) % 1, x[:half].flip(0)])  # other images in front, the first half behind
    logits, _, gradient = evaluate_objective(model, x, labels, None, cross_entropy)
    moved_logits, _, moved = evaluate_objective(model, other, labels.flip(0), None, cross_entropy)
    return torch.equal(moved_logits[-half:].flip(0), logits[:half]) and torch.equal(
        moved[-half:].flip(0), gradient[:half]
    )


def begin_columns(attack: Stepwise, state: Rows, step: Tensor) -> Rows:
    """Make the columns that follow the iterates of ``attack`` from ``state``; none if its moves depend on the step."""
    if not is_memoryless(attack):
        return {}
    return {CYCLE + name: column for name, column in cycles.begin(state, step).items()}


def skip_periods(part: StepwiseProtocol, attack: Stepwise, rows: Rows, state: Rows) -> Rows:
    """Follow the iterates by one step, and move images in a cycle forward by all the whole periods that are left.

    If recorded steps lie in between, one more period is computed first: ``is_recorded`` assigns each its iterate.
    """
    columns = {name[len(CYCLE) :]: column for name, column in rows.items() if name.startswith(CYCLE)}
    if not columns:
        return rows
    step = rows["step"]
    # both counts grow by the same amount in every period; they are packed into one number
    columns = cycles.follow(columns, state, step, lambda: (rows["zero_gradients"] << 32) + rows["unconfirmed"])
    rows = {**rows, **{CYCLE + name: column for name, column in columns.items()}}
    period = columns["period"]
    if not bool(period.any()):
        return rows
    left = cycles.periods_left(period, step, attack.steps) * ~rows["decided"]
    if part.record and part.criterion == "last":
        recorded = torch.tensor(part.record, device=step.device)
        between = ((recorded >= columns["since"][:, None]) & (recorded < attack.steps)).any(1)
        left = torch.where(between & (step < columns["since"] + period), 0, left)
    per_period = columns["per_period"]
    return {
        **rows,
        "step": step + left * period,
        "steps_skipped": rows["steps_skipped"] + left * period,
        "zero_gradients": rows["zero_gradients"] + left * (per_period >> 32),
        "unconfirmed": rows["unconfirmed"] + left * (per_period & 0xFFFFFFFF),
    }


def is_recorded(rows: Rows, record: Tensor, steps: int) -> Tensor:
    """Return True where the current iterate is that of a recorded step, [N, R].

    In a cycle it is also the iterate of later steps in the same phase, except for the last step, which is judged
    separately.
    """
    step = rows["step"][:, None]
    now = record == step
    if f"{CYCLE}period" not in rows:
        return now
    period = rows[f"{CYCLE}period"][:, None]
    later = (record > step) & (record < steps)
    return now | ((period > 0) & later & ((record - step) % period.clamp_min(1) == 0))
