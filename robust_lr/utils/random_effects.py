"""Means and differences over training runs and images, when both are samples: intervals, p-values, sizes needed.

Images are crossed with training runs, because every run is judged on the same images. A figure of a run on an image is
then a mean plus an effect of the run, an effect of the image, and a rest (two-way random effects, Searle, Casella and
McCulloch 1992, chapter 4; medical imaging has the same design with readers for runs and cases for images: Hillis 2007,
Statistics in Medicine 26:596). Its variance components follow from the mean squares of a two-way analysis of variance.

A few runs say little about the variance between runs, thousands of values a lot about the other components. So each
part of the variance of the mean gets the quantile of its own distribution, and the squares are added (Graybill and Wang
1980, Journal of the American Statistical Association 75:869): Student's t with runs - 1 degrees of freedom for what the
mean square between runs estimates, the normal distribution for the images. The former contains the rest as well; a
quarter of the rest is taken to be known (``KNOWN``, ours), with which simulated intervals cover 94 to 96 %. At higher
levels less is (``known_share``, ours): three runs that agree by chance would otherwise make p-values far too small. See
``tests/utils/test_random_effects.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

LEVEL = 0.95
#: share of the rest's variance that counts as known at 95 %; with 0 intervals of 3 runs cover 97 %, with 1 only 93 %
KNOWN = 0.25
#: probability of a decision with as many runs or images as ``runs_needed`` and ``images_needed`` return
POWER = 0.8
MAX_RUNS = 1000
MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class Components:
    """Variance of one run on one image: between runs, between images, and the rest.

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
        interval: 95 %; infinite where one run says nothing of others.
        p: two-sided p-value of the hypothesis that the true mean is 0.
        per_run: the mean of each run, over the images.
        images: their number.
        components: variance components; None for a single run.
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
        """Standard deviation of the runs' means (n - 1); None for a single run."""
        return float(torch.tensor(self.per_run, dtype=torch.float64).std()) if self.runs > 1 else None


def mean_over_runs(values: Tensor) -> Estimate:
    """Estimate the mean of ``values`` [runs, images], in which runs and images are both samples.

    For a difference of two kinds of networks give the differences of a run of one and a run of the other, image by
    image; which runs are paired does not matter, if they are independent.
    """
    x = values.double()
    runs, images = x.shape
    value, by_run, by_image = float(x.mean()), x.mean(1), x.mean(0)
    per_run = tuple(by_run.tolist())
    if runs < 2 or images < 2:
        return Estimate(value, (-inf, inf), 1.0, per_run, images, None)
    rest = x - by_run[:, None] - by_image[None] + value
    ms_rest = float((rest * rest).sum()) / ((runs - 1) * (images - 1))
    found = Components(
        runs=float(by_run.var()) - ms_rest / images,
        images=float(by_image.var()) - ms_rest / runs,
        rest=ms_rest,
    )
    half = half_width(found, runs, images, LEVEL)
    return Estimate(value, (value - half, value + half), p_value(value, found, runs, images), per_run, images, found)


def half_width(found: Components, runs: int, images: int, level: float) -> float:
    """Return half the width of the interval of a mean over this many runs and images."""
    share, known = (1 + level) / 2, known_share(level)
    between = max(0.0, found.runs + (1 - known) * found.rest / images) / runs
    within = max(0.0, found.images) / images + known * found.rest / (runs * images)
    return sqrt(student_quantile(runs - 1, share) ** 2 * between + normal_quantile(share) ** 2 * within)


def known_share(level: float) -> float:
    """Return the share of the rest's variance that counts as known: ``KNOWN`` up to 95 %, none as the level nears 1."""
    return KNOWN * min(1.0, (1 - level) / (1 - LEVEL))


def p_value(value: float, found: Components, runs: int, images: int) -> float:
    """Return the p-value that belongs to the intervals: 1 minus the level at which one ends at 0."""
    low, high = 0.0, 1.0  # levels; the interval grows with the level
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if half_width(found, runs, images, middle) < abs(value) else (low, middle)
    return 1 - high if value else 1.0


def runs_needed(estimate: Estimate, images: int | None = None, *, tests: int = 1) -> int | None:
    """Find the number of training runs with which the interval would exclude 0 with a probability of 80 %.

    The true difference and variances are taken to be those that were estimated.

    Args:
        images: by default as many as now.
        tests: how many p-values are corrected together; the answer holds whatever the others are (Bonferroni).

    Returns:
        None if not even ``MAX_RUNS`` would do.
    """
    return find_smallest(lambda runs: has_power(estimate, runs, images or estimate.images, tests), 2, MAX_RUNS)


def images_needed(estimate: Estimate, *, tests: int = 1) -> int | None:
    """Find the number of images with which the present number of runs would decide, as in ``runs_needed``."""
    return find_smallest(lambda images: has_power(estimate, estimate.runs, images, tests), 2, MAX_IMAGES)


def has_power(estimate: Estimate, runs: int, images: int, tests: int) -> bool:
    """Tell whether this many runs and images have the power to find a difference as large as the estimate."""
    found = estimate.components
    if found is None:
        return False
    components = max(0.0, found.runs) / runs + max(0.0, found.images) / images + found.rest / (runs * images)
    level = 1 - (1 - LEVEL) / tests
    return abs(estimate.value) > half_width(found, runs, images, level) + normal_quantile(POWER) * sqrt(components)


def find_smallest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Find the smallest number from ``low`` to ``high`` that is enough; every larger number must be enough, too."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def student_quantile(freedom: int, share: float) -> float:
    """Return a quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def normal_quantile(share: float) -> float:
    """Return a quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))
