"""Cycles of iterates: found once they are there, confirmed to the bit, and never where there are none."""

import pytest
import torch

from robust_lr.attacks import cycles
from robust_lr.attacks.pgd import pgd_linf


def walk(path):
    """Follow one image along a list of pixel values; the columns after the last."""
    states = [{"query": torch.full((1, 1, 1, 2), float(value))} for value in path]
    columns = cycles.begin(states[0], torch.tensor([0]))
    for step, state in enumerate(states[1:], start=1):
        columns = cycles.follow(columns, state, torch.tensor([step]), lambda step=step: torch.tensor([3 * step]))
    return columns


@pytest.mark.parametrize("period", [1, 2, 5, cycles.MAX_PERIOD])
def test_a_cycle_is_confirmed_one_period_after_it_is_suspected(period):
    path = [-1.0, -2.0, -3.0] + [step % period / 100 for step in range(3 * period)]
    last = 3 + 2 * period  # in the cycle from step 3, suspected at 3 + period
    assert int(walk(path[:last])["period"]) == 0
    columns = walk(path[: last + 1])
    assert int(columns["period"]) == period
    assert int(columns["since"]) == last
    assert int(columns["per_period"]) == 3 * period


def test_cycles_longer_than_the_longest_and_paths_without_any_are_not_found():
    longer = [step % (cycles.MAX_PERIOD + 1) / 100 for step in range(100)]
    assert int(walk(longer)["period"]) == 0
    assert int(walk([step / 100 for step in range(100)])["period"]) == 0


def test_equal_hashes_of_different_iterates_are_no_cycle(monkeypatch):
    monkeypatch.setattr(cycles, "hash_rows", lambda state: torch.zeros(1, dtype=torch.int64))
    assert int(walk([step / 100 for step in range(60)])["period"]) == 0


def test_momentum_is_part_of_the_state():
    """The same image with another velocity goes elsewhere."""
    columns = None
    for step in range(40):
        query = torch.full((1, 1, 1, 1), float(step % 2))
        state = {"query": query, "velocity": torch.full_like(query, float(step))}
        now = torch.tensor([step])
        if columns is None:
            columns = cycles.begin(state, now)
        else:
            columns = cycles.follow(columns, state, now, lambda now=now: now)
    assert int(columns["period"]) == 0


def test_periods_left():
    left = cycles.periods_left(torch.tensor([0, 3, 3, 4]), torch.tensor([10, 10, 98, 100]), 100)
    assert left.tolist() == [0, 30, 0, 0]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("steps", [40, 41, 43])
def test_pgd_ends_early_on_the_same_iterate(targeted, momentum, steps):
    torch.manual_seed(0)
    weights, count = torch.randn(12, 4), [0]

    def model(x):
        count[0] += 1
        hidden = x.flatten(1) @ weights
        return torch.cat([hidden, -(hidden**2)], dim=1)

    x, y = torch.rand(8, 3, 2, 2), torch.arange(8) % 8
    options = {"eps": 0.1, "step_size": 0.03, "steps": steps, "targeted": targeted, "momentum": momentum}
    plain = pgd_linf(model, x, y, **options)
    assert count[0] == steps
    early = pgd_linf(model, x, y, **options, end_at_cycles=True)
    assert torch.equal(plain, early)
    if not momentum:
        assert count[0] < 2 * steps
