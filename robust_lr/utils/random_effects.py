"""Means and differences over training runs and images, both taken as samples: intervals, p-values, sample sizes.

Images are crossed with training runs, because every run is evaluated on the same images. The value of a run on an image
is then a mean plus an effect of the run, an effect of the image, and a residual (two-way random effects: Searle,
Casella and McCulloch 1992, chapter 4; medical imaging has the same design with readers for runs and cases for images:
Hillis 2007, Statistics in Medicine 26:596). The variance components follow from the mean squares of a two-way analysis
of variance.

The variance between runs is estimated from a few runs, the other components from thousands of values. Each part of the
variance of the mean is therefore multiplied by the squared quantile of its own distribution before the parts are added
(Graybill and Wang 1980, Journal of the American Statistical Association 75:869): Student's t with runs - 1 degrees of
freedom for the mean square between runs, the normal distribution for the images. The mean square between runs also
contains the residual; a quarter of the residual variance counts as known (``KNOWN``, ours), with which simulated
intervals cover 94 to 96 %. At levels above 95 % a smaller share counts as known (``known_share``, ours), because three
runs that agree by chance would otherwise give p-values that are far too small. See
``tests/utils/test_random_effects.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

LEVEL = 0.95
#: share of the residual variance that counts as known at 95 %; intervals of 3 runs would cover 97 % with 0, 93 % with 1
KNOWN = 0.25
#: power of a test with as many runs or images as ``runs_needed`` and ``images_needed`` return
POWER = 0.8
MAX_RUNS = 1000
MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class Components:
    """Variance components of one run on one image: between runs, between images, and residual.

    They are unbiased estimates, so the first two can be negative.
    """

    runs: float
    images: float
    rest: float


@dataclass(frozen=True)
class Estimate:
    """A mean over training runs and images.

    Attributes:
        value: the mean.
        interval: 95 % confidence interval; infinite for a single run or image.
        p: two-sided p-value of the hypothesis that the true mean is 0.
        per_run: the mean of each run over the images.
        images: number of images.
        components: variance components; None for a single run or image.
    """

    value: float
    interval: tuple[float, float]
    p: float
    per_run: tuple[float, ...]
    images: int
    components: Components | None

    @property
    def runs(self) -> int:
        return len(self.per_run)

    @property
    def std(self) -> float | None:
        """Standard deviation of the runs' means, with n - 1 degrees of freedom; None for a single run."""
        return float(torch.tensor(self.per_run, dtype=torch.float64).std()) if self.runs > 1 else None


def mean_over_runs(values: Tensor) -> Estimate:
    """Estimate the mean of ``values`` [runs, images], with runs and images both taken as samples.

    To compare two kinds of networks, pair each run of one with a run of the other and give the differences of their
    values on each image. Any pairing will do if the runs are independent.
    """
    x = values.double()
    runs, images = x.shape
    value, by_run, by_image = float(x.mean()), x.mean(1), x.mean(0)
    per_run = tuple(by_run.tolist())
    if runs < 2 or images < 2:
        return Estimate(value, (-inf, inf), 1.0, per_run, images, None)
    residuals = x - by_run[:, None] - by_image[None] + value
    residual = float((residuals * residuals).sum()) / ((runs - 1) * (images - 1))
    found = Components(
        runs=float(by_run.var()) - residual / images,
        images=float(by_image.var()) - residual / runs,
        rest=residual,
    )
    half = half_width(found, runs, images, LEVEL)
    return Estimate(value, (value - half, value + half), p_value(value, found, runs, images), per_run, images, found)


def half_width(found: Components, runs: int, images: int, level: float) -> float:
    """Return half the width of the confidence interval at ``level`` of a mean over ``runs`` and ``images``."""
    share, known = (1 + level) / 2, known_share(level)
    between = max(0.0, found.runs + (1 - known) * found.rest / images) / runs
    within = max(0.0, found.images) / images + known * found.rest / (runs * images)
    return sqrt(student_quantile(runs - 1, share) ** 2 * between + normal_quantile(share) ** 2 * within)


def known_share(level: float) -> float:
    """Return the share of the residual variance that counts as known: ``KNOWN`` up to 95 %, then falling to 0 at 1."""
    return KNOWN * min(1.0, (1 - level) / (1 - LEVEL))


def p_value(value: float, found: Components, runs: int, images: int) -> float:
    """Return the p-value that matches the intervals: 1 minus the level at which an interval ends at 0."""
    low, high = 0.0, 1.0  # levels; the interval grows with the level
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(found, runs, images, middle) < abs(value) else (low, middle)
    return 1 - high if value else 1.0


def runs_needed(estimate: Estimate, images: int | None = None, *, tests: int = 1) -> int | None:
    """Return the number of training runs with which the interval would exclude 0 with a power of 80 %.

    The true difference and variances are assumed to equal the estimates.

    Args:
        images: number of images; by default that of ``estimate``.
        tests: number of p-values that are corrected together (Bonferroni).

    Returns:
        None if even ``MAX_RUNS`` are too few.
    """
    return find_smallest(lambda runs: has_power(estimate, runs, images or estimate.images, tests), 2, MAX_RUNS)


def images_needed(estimate: Estimate, *, tests: int = 1) -> int | None:
    """Return the number of images with which the present number of runs would suffice, as in ``runs_needed``.

    Returns None if even ``MAX_IMAGES`` are too few.
    """
    return find_smallest(lambda images: has_power(estimate, estimate.runs, images, tests), 2, MAX_IMAGES)


def has_power(estimate: Estimate, runs: int, images: int, tests: int) -> bool:
    """Return True if a test with ``runs`` and ``images`` finds a difference as large as the estimate with ``POWER``."""
    found = estimate.components
    if found is None:
        return False
    components = max(0.0, found.runs) / runs + max(0.0, found.images) / images + found.rest / (runs * images)
    level = 1 - (1 - LEVEL) / tests
    return abs(estimate.value) > half_width(found, runs, images, level) + normal_quantile(POWER) * sqrt(components)


def find_smallest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the smallest number from ``low`` to ``high`` that is ``enough``, a monotone predicate; None if none is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def student_quantile(freedom: int, share: float) -> float:
    """Return the quantile of Student's t distribution with ``freedom`` degrees at the probability ``share``."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def normal_quantile(share: float) -> float:
    """Return the quantile of the standard normal distribution at the probability ``share``."""
    from scipy.special import ndtri

    return float(ndtri(share))
