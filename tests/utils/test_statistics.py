import itertools
import random
from fractions import Fraction
from math import comb

import pytest

from robust_lr.utils.statistics import difference, holm, mcnemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 7, 0.0703),  # Fagerland et al. 2013, airway hyper-responsiveness
        (6, 16, 0.0525),  # the same, complete response
        (12, 2, 0.0129),  # Armitage and Berry 1994, p. 127, two culture media
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 1, 1.0),
        (0, 10, 2**-9),
    ],
)
def test_mcnemar_gives_published_values(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, abs=5e-5)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_mcnemar_is_exact_for_many_pairs():
    for a, b in ((30, 55), (400, 480)):
        exact = min(Fraction(1), 2 * sum(comb(a + b, i) for i in range(min(a, b) + 1)) * Fraction(1, 2 ** (a + b)))
        assert mcnemar(a, b) == float(exact)
    assert 0 < mcnemar(24_000, 26_000) < 1e-15
    assert mcnemar(0, 5000) == 0.0  # below the smallest float


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # airway hyper-responsiveness (Bentur et al. 2009)
        ((1, 1, 7, 12), (-0.2857, -0.507, -0.026)),
        # complete response (Cavo et al. 2012)
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),
    ],
)
def test_intervals_of_differences_are_the_published_ones(counts, published):
    """Newcombe's square-and-add: Fagerland, Lydersen and Laake 2014; tests of their R package contingencytables."""
    for value, expected in zip(difference(*counts), published, strict=True):
        assert value == pytest.approx(expected, abs=0.5 * 10.0 ** -len(str(expected).partition(".")[2]))


def test_intervals_of_differences_are_symmetric_and_stay_in_range():
    for counts in itertools.product(range(0, 30, 7), repeat=4):
        estimate, low, high = difference(*counts)
        assert -1 <= low <= estimate <= high <= 1
        both, first, second, neither = counts
        swapped = difference(both, second, first, neither)
        assert swapped == pytest.approx((-estimate, -high, -low), abs=1e-12)
        assert difference(neither, second, first, both) == pytest.approx(swapped, abs=1e-12)  # wrong for right
    assert difference(0, 0, 0, 0) == (0, -1, 1)


def test_intervals_cover_the_true_difference():
    draw = random.Random(0)
    shares = (0.5, 0.15, 0.05, 0.3)
    inside = 0
    for _ in range(2000):
        drawn = draw.choices(range(4), shares, k=200)
        _, low, high = difference(*(drawn.count(kind) for kind in range(4)))
        inside += low <= shares[1] - shares[2] <= high
    assert 0.93 < inside / 2000 < 0.98


def test_pairs_that_agree_narrow_the_interval():
    """More so than two sets of images that have nothing to do with each other."""
    together, apart = difference(80, 10, 0, 110), difference(36, 54, 44, 66)
    assert together[0] == pytest.approx(apart[0])
    assert together[2] - together[1] < (apart[2] - apart[1]) / 2


def test_holm_adjusts_p_values():
    # Holm's procedure by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
