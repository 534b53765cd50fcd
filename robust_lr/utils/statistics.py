"""Statistics of proportions, and of paired outcomes: two models on the same images, or one on two versions of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, from the numbers of discordant pairs.

    Under the null hypothesis, each discordant pair is the toss of a fair coin (McNemar 1947; exact form: Fagerland et
    al. 2013, BMC Medical Research Methodology 13:91). Sums of integers keep small p-values exact.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    ways, term = 1, 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        ways += term
    return min(1.0, float(2 * ways / 2**n))


def difference(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float, float]:
    """Return the first proportion minus the second, and the bounds of its 95 % interval (Newcombe 1998, method 10).

    The method (Statistics in Medicine 17:2635) combines the Wilson intervals of both proportions by squaring and
    adding, with the continuity-corrected correlation of the pairs. Without observations, it returns (0, -1, 1).

    Args:
        both, only_first, only_second, neither: numbers of pairs in which both succeed, only one does, or neither does.
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

    def join_margins(a: float, b: float) -> float:
        return sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p - q, p - q - join_margins(p - p_low, q_high - q), p - q + join_margins(p_high - p, q - q_low)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the family-wise error rate stays below the level (Holm 1979)."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def format_value(share: Proportion) -> str:
    """Return the value in %, e.g. "52.3", or "-" without observations."""
    return "-" if share.value is None else f"{100 * share.value:.1f}"


def format_interval(share: Proportion) -> str:
    """Return the 95 % interval in %, e.g. "48.1-56.4"."""
    low, high = share.interval
    return f"{100 * low:.1f}-{100 * high:.1f}"


Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, by default at 95 %; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    center = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # with no success or no failure the bound is p itself, and rounding must not move it
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


@dataclass(frozen=True)
class Proportion:
    """The proportion ``count`` / ``n`` with its 95 % Wilson interval; ``value`` is None if n = 0."""

    count: int
    n: int

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.n)

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
