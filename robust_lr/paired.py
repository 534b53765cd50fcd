"""Statistics of pairs: two models on the same images, or one model on images in two forms."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .results import wilson


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, that both are equally often right, from the pairs which disagree.

    Under that hypothesis each of them is a fair coin (McNemar 1947; exact form: Fagerland et al. 2013, BMC Medical
    Research Methodology 13:91). In whole numbers, so there is no rounding, however small the value.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    ways, term = 1, 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        ways += term
    return min(1.0, float(2 * ways / 2**n))


def difference(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float, float]:
    """First proportion minus second, and its 95 % interval: Newcombe 1998 (Statistics in Medicine 17:2635), method 10.

    The Wilson intervals of both proportions are joined by squaring and adding, with the correlation of the pairs,
    which is corrected for continuity. (0, -1, 1) when nothing was observed.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return 0.0, -1.0, 1.0
    first, second = both + only_first, both + only_second
    p, q = first / n, second / n
    (p_low, p_high), (q_low, q_high) = wilson(first, n), wilson(second, n)
    margins = first * (n - first) * second * (n - second)
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / sqrt(margins) if margins else 0.0

    def joined(a: float, b: float) -> float:
        return sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p - q, p - q - joined(p - p_low, q_high - q), p - q + joined(p_high - p, q - q_low)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false rejection stays below the level (Holm 1979)."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
