import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_lr.protocols.pgd import PGD
from robust_lr.results.indicators import INDICATORS, indicators
from robust_lr.results.ledger import Row
from robust_lr.results.validity import Check
from robust_lr.results.verdict import (
    DOMINATED,
    STRONGER,
    Probes,
    join_probes,
    share_interval,
    verdict_of,
    verdicts_in_words,
)

ROW = Row(
    id=0, input_hash="ab", label=0, target=None, clean=0, adversarial=0, robust=True, robust_worst_seen=True,
    success=False, first_success=None, first_wrong=None, clean_loss=0.1, zero_gradients=0, margin=1.0, loss=0.5,
    distance=0.06, broken_by=None, record="", unconfirmed=0, steps_skipped=0, forwards=10, backwards=8, seconds=0.1,
)  # fmt: skip


def rows(n=200, robust=100):
    return [dataclasses.replace(ROW, id=i, robust=i < robust) for i in range(n)]


def probes(sample=100, stronger=0, dominated=0, **more):
    found = dict.fromkeys(range(stronger), ("APGD", STRONGER))
    found.update(dict.fromkeys(range(stronger, stronger + dominated), ("Square", DOMINATED)))
    return Probes(sample=tuple(range(sample)), broken=found, ran=("APGD", "Square"), **more)


@pytest.mark.parametrize(
    ("stronger", "dominated", "verdict"),
    [(0, 0, "sound"), (4, 0, "sound"), (5, 0, "weak"), (60, 0, "weak"), (0, 4, "sound"), (0, 30, "misled")],
)
def test_the_verdict_depends_on_the_probes_that_broke_two_points(stronger, dominated, verdict):
    found = verdict_of(rows(), probes(stronger=stronger, dominated=dominated))
    assert found.verdict == verdict
    assert found.inflation.value == pytest.approx((stronger + dominated) / 200)
    assert found.bound == pytest.approx(0.5 - (stronger + dominated) / 200)
    assert bool(found.advice) is (verdict != "sound")


def test_a_sample_needs_more_than_the_whole():
    """Of all robust images, five are more than two points; of a sample, they may be chance."""
    assert verdict_of(rows(), probes(sample=100, stronger=5)).verdict == "weak"
    assert verdict_of(rows(2000, 1000), probes(sample=50, stronger=2)).verdict == "sound"
    assert verdict_of(rows(2000, 1000), probes(sample=50, stronger=10)).verdict == "weak"


def test_a_failed_check_of_the_structure_gives_the_verdict_misled():
    failed = Check("no state", False, "it counts", "ask a copy")
    found = verdict_of(rows(), probes(checks=(failed,), misleading=("no state",)))
    assert (found.verdict, found.reason, found.advice) == ("misled", "it counts", "ask a copy")
    assert verdict_of(rows(), probes(checks=(failed,), misleading=())).verdict == "sound"


def test_without_probes_there_is_no_verdict():
    assert verdict_of(rows(), None).verdict is None
    assert verdict_of(rows(robust=0), Probes()).verdict == "sound"
    assert verdict_of(rows(robust=0), Probes()).bound == 0


def test_verdicts_of_a_table_are_summarized():
    found = [verdict_of(rows(), probes(stronger=count)) for count in (0, 10, 20)]
    words = "Verdicts: 1 sound, 2 weak, too high by 10.0 points at most by the probes."
    assert verdicts_in_words(found) == words
    assert "no probes" in verdicts_in_words([verdict_of(rows(), None)])


def test_probes_survive_json_and_shards_are_merged():
    one, other = probes(10, 2, 1), dataclasses.replace(probes(5), sample=(20, 21), broken={20: ("Square", DOMINATED)})
    assert Probes.from_json(one.to_json()) == one
    both = join_probes([one, other])
    assert both.sample == (*range(10), 20, 21)
    assert len(both.broken) == 4
    assert join_probes([one, None]) is None


@given(st.integers(1, 300), st.data())
def test_intervals_contain_the_estimate_and_the_certain_bounds(population, data):
    m = data.draw(st.integers(1, population))
    k = data.draw(st.integers(0, m))
    low, high = share_interval(k, m, population)
    assert k / population - 1e-9 <= low <= k / m + 1e-9
    assert k / m - 1e-9 <= high <= (population - m + k) / population + 1e-9


# indicators of attack failure

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
def test_each_indicator_detects_its_failure(name, values):
    assert failed([dataclasses.replace(row, **values) for row in rows()]) == [name]


def test_probes_tell_the_others():
    assert failed(rows(), probes(stronger=20)) == ["incomplete optimization"]
    checks = tuple(Check(name, False, "") for name in ("logits are continuous", "the gradient predicts the margin"))
    assert failed(rows(), probes(checks=checks)) == ["unstable predictions", "unconstrained attack failure"]
