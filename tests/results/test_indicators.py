import dataclasses

import pytest
from test_verdict import probes, rows

from robust_lr.protocols.pgd import PGD
from robust_lr.results.indicators import INDICATORS, indicators
from robust_lr.results.validity import Check

ATTACK = PGD(eps=16 / 255, step_size=1 / 255, steps=16)


def failed(rows, probes=None):
    return [check.name for check in indicators(rows, ATTACK, probes) if check.passed is False]


def test_sound_rows_show_no_sign_of_failure():
    assert failed(rows()) == []
    assert failed(rows(), probes()) == []
    assert [check.name for check in indicators(rows(), ATTACK, None)] == list(INDICATORS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unavailable gradients", {"zero_gradients": 1}),
        ("silent success", {"robust_worst_seen": False}),
        ("incomplete optimization", {"first_wrong": 15}),
        ("transfer failure", {"unconfirmed": 1}),
    ],
)
def test_each_indicator_shows_its_own_failure(name, values):
    assert failed([dataclasses.replace(row, **values) for row in rows()]) == [name]


def test_probes_tell_the_others():
    assert failed(rows(), probes(stronger=20)) == ["incomplete optimization"]
    checks = tuple(Check(name, False, "") for name in ("logits are continuous", "the gradient predicts the margin"))
    assert failed(rows(), probes(checks=checks)) == ["unstable predictions", "unconstrained attack failure"]
