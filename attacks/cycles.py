"""End fixed-step attacks early, with the exact same result: an iterate that repeats once repeats forever.

PGD with a fixed step is a deterministic map from one iterate to the next, with finitely many values in floating point.
An image that stays robust therefore ends in a cycle: on trained networks mostly one of 2 to 6 steps, after a few dozen
steps (arXiv 2503.19347 observes the same). From then on every query, prediction and gradient is known.

A repeated hash of the state proposes a period; the state is then saved and compared with the one a period later. Only
bitwise equality counts. This needs arithmetic that gives an image the same bits in every pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]

#: maximum length of a cycle that is found, in steps
MAX_PERIOD = 16
#: odd multiplier and increment of the hash, from the 64-bit golden ratio; any others would do
_MULTIPLIER, _INCREMENT = 0x9E3779B1, 0x7F4A7C15

_ANCHOR = "anchor."


def begin(state: State, step: Tensor) -> State:
    """Make the columns that follow images from their first ``state``, at ``step`` [N].

    ``period`` [N] is 0 until a cycle is confirmed, ``since`` is the step at which it was confirmed, and ``per_period``
    is how much the tally of ``follow`` grew in one period.
    """
    none = torch.full_like(step, -1)
    hashes = torch.full((len(step), MAX_PERIOD), -1, dtype=torch.int64, device=step.device)
    return {
        "hashes": hashes.scatter(1, (step % MAX_PERIOD)[:, None], hash_rows(state)[:, None]),
        **{_ANCHOR + name: column for name, column in state.items()},
        "candidate": torch.zeros_like(step),
        "expected": none,  # step at which the anchor should repeat
        "period": torch.zeros_like(step),
        "since": none,
        "per_period": torch.zeros_like(step),
    }


def follow(columns: State, state: State, step: Tensor, tally: Callable[[], Tensor]) -> State:
    """Update the columns after an attack has moved to ``state`` at ``step`` [N]; ``tally()`` [N] is any growing count.

    The usual step, at which nothing repeats, takes few operations.
    """
    due = columns["expected"] == step
    code = hash_rows(state)[:, None]
    repeated = columns["hashes"] == code
    if bool((repeated.any(1) | due).any()):
        count = tally()
        columns = confirm(columns, state, step, due, count)
        columns = propose(columns, state, step, repeated, count)
    return {**columns, "hashes": columns["hashes"].scatter(1, (step % MAX_PERIOD)[:, None], code)}


def confirm(columns: State, state: State, step: Tensor, due: Tensor, tally: Tensor) -> State:
    """Confirm the candidate period of images whose anchor is ``due`` [N] to repeat, if it does."""
    same = due
    for name, column in state.items():
        same = same & (column == columns[_ANCHOR + name]).flatten(1).all(1)
    return {
        **columns,
        "period": torch.where(same, columns["candidate"], columns["period"]),
        "since": torch.where(same, step, columns["since"]),
        "per_period": torch.where(same, tally - columns["per_period"], columns["per_period"]),
        "expected": torch.where(due, -1, columns["expected"]),
    }


def propose(columns: State, state: State, step: Tensor, repeated: Tensor, tally: Tensor) -> State:
    """Anchor images whose hash is ``repeated`` [N, MAX_PERIOD] and which have no other candidate at the moment."""
    places = torch.arange(MAX_PERIOD, device=step.device)
    age = (step[:, None] - places - 1) % MAX_PERIOD + 1
    candidate = torch.where(repeated, age, MAX_PERIOD + 1).amin(1)
    fresh = (candidate <= MAX_PERIOD) & (columns["expected"] < 0) & (columns["period"] == 0)
    if not bool(fresh.any()):
        return columns
    anchors = {
        _ANCHOR + name: torch.where(fresh.view(-1, *[1] * (column.ndim - 1)), column, columns[_ANCHOR + name])
        for name, column in state.items()
    }
    return {
        **columns,
        **anchors,
        "candidate": torch.where(fresh, candidate, columns["candidate"]),
        "expected": torch.where(fresh, step + candidate, columns["expected"]),
        "per_period": torch.where(fresh, tally, columns["per_period"]),
    }


def periods_left(period: Tensor, step: Tensor, steps: int) -> Tensor:
    """Return the number of whole periods between ``step`` and ``steps``, [N]; 0 if no cycle is confirmed."""
    return torch.where(period > 0, (steps - step).clamp_min(0) // period.clamp_min(1), 0)


def hash_rows(state: State) -> Tensor:
    """Hash each row over all tensors of ``state``, [N] int64; equal rows have equal hashes."""
    total: Tensor | None = None
    for name in sorted(state):
        bits = state[name].contiguous().view(torch.int32).flatten(1)
        # 32 bits a tensor are enough, as equality is confirmed, and their sum takes a third of the time of 64
        code = (bits * _weights(bits.shape[1], bits.device)).sum(1, dtype=torch.int32).long()
        total = code if total is None else total * _MULTIPLIER + code
    assert total is not None, "an attack has a state"
    return total


_KEPT: dict[tuple[int, torch.device], Tensor] = {}


def _weights(n: int, device: torch.device) -> Tensor:
    """Return ``n`` odd int32 numbers, cached for each size."""
    if (n, device) not in _KEPT:
        if len(_KEPT) >= 16:
            _KEPT.clear()
        numbers = torch.arange(n, dtype=torch.int64) * _MULTIPLIER + _INCREMENT
        _KEPT[n, device] = ((numbers ^ numbers >> 15) % 2**31 | 1).to(torch.int32).to(device)
    return _KEPT[n, device]
