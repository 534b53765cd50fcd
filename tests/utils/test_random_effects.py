from math import inf, sqrt

import pytest
import torch
from torch.distributions import Normal

from robust_lr.utils.random_effects import Components, Estimate, images_needed, mean_over_runs, p_value, runs_needed

NORMAL = Normal(0.0, 1.0)
ABILITIES = torch.tensor([0.2, 0.4])
SHARED, OWN, NOISE = (
    1.0,
    0.5,
    0.6,
)  # standard deviations: of an image's difficulty, for both networks, for one, in a run


def simulate(runs, images, between_runs, generator):
    """Differences of two networks, right or wrong on the same images, of which each run and each image is a sample."""
    difficulty = SHARED * torch.randn(images, generator=generator)
    own = OWN * torch.randn(2, 1, images, generator=generator)
    ability = ABILITIES[:, None, None] + between_runs * torch.randn(2, runs, 1, generator=generator)
    right = ability + difficulty + own + NOISE * torch.randn(2, runs, images, generator=generator) > 0
    return right[0].double() - right[1].double()


def true_difference(between_runs):
    spread = sqrt(between_runs**2 + SHARED**2 + OWN**2 + NOISE**2)
    first, second = NORMAL.cdf(ABILITIES / spread)
    return float(first - second)


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("between_runs", [0.0, 0.06, 0.2])
def test_intervals_cover_the_true_difference(runs, between_runs):
    generator, truth, trials = torch.Generator().manual_seed(runs), true_difference(between_runs), 1000
    estimates = [mean_over_runs(simulate(runs, 100, between_runs, generator)) for _ in range(trials)]
    covered = sum(low <= truth <= high for low, high in (estimate.interval for estimate in estimates))
    assert 0.93 <= covered / trials <= 0.97


@pytest.mark.parametrize("between_runs", [0.06, 0.2])
def test_small_p_values_of_three_runs_are_as_rare_as_they_say(between_runs):
    """Three runs may agree by chance; p-values that a Holm correction of nine claims compares must not be fooled."""
    generator, truth, trials, rate = torch.Generator().manual_seed(0), true_difference(between_runs), 4000, 0.05 / 9
    estimates = [mean_over_runs(simulate(3, 100, between_runs, generator)) for _ in range(trials)]
    errors = sum(p_value(found.value - truth, found.components, 3, 100) < rate for found in estimates)
    assert errors < 1.5 * rate * trials


def test_pooling_images_of_all_runs_would_be_overconfident():
    """Counting every image of every run as a trial of its own ignores that runs differ; ours is wider."""
    values = simulate(3, 200, 0.4, torch.Generator().manual_seed(1))
    low, high = mean_over_runs(values).interval
    naive = 2 * 1.96 * float(values.std()) / sqrt(values.numel())
    assert high - low > 2 * naive


def test_p_values_belong_to_the_intervals():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        estimate = mean_over_runs(simulate(4, 100, 0.1, generator))
        low, high = estimate.interval
        assert (estimate.p < 0.05) == (not low <= 0 <= high)
    end = mean_over_runs(simulate(4, 100, 0.1, generator))
    shift = end.interval[0]
    assert mean_over_runs(torch.full((3, 4), 0.0)).p == 1.0
    shifted = Estimate(end.value - shift, (0, 0), 0, end.per_run, end.images, end.components)
    assert p_value(shifted.value, shifted.components, 4, 100) == pytest.approx(0.05, abs=1e-9)


def test_variance_between_runs_alone_gives_student_s_interval():
    values = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)[:, None].expand(3, 50)
    estimate = mean_over_runs(values)
    half = 4.302653 * float(values[:, 0].std()) / sqrt(3)  # t with 2 degrees of freedom
    assert estimate.interval == pytest.approx((0.7 / 3 - half, 0.7 / 3 + half), rel=1e-5)
    assert estimate.std == pytest.approx(float(values[:, 0].std()))
    assert estimate.per_run == pytest.approx((0.1, 0.2, 0.4))


def test_variance_between_images_alone_gives_the_normal_interval():
    row = torch.tensor([1.0, 0.0, 0.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    low, high = mean_over_runs(row.expand(5, 6)).interval
    assert (high - low) / 2 == pytest.approx(1.959964 * float(row.std()) / sqrt(6), rel=1e-6)


def test_one_run_has_an_infinite_interval():
    estimate = mean_over_runs(torch.tensor([[1.0, 0.0, 1.0]]))
    assert (estimate.interval, estimate.p, estimate.std) == ((-inf, inf), 1.0, None)
    assert runs_needed(estimate) is None
    assert images_needed(estimate) is None


def test_needed_sizes_have_the_power_they_promise():
    """The number of runs that is named finds the difference in about 80 % of simulations, half of it in fewer."""
    components = Components(runs=0.03**2, images=0.1, rest=0.1)
    found = Estimate(0.05, (0, 0), 0.5, (0.0, 0.1, 0.05), 1000, components)
    needed = runs_needed(found)
    assert needed is not None
    generator = torch.Generator().manual_seed(3)

    def share(runs):
        wins = 0
        for _ in range(300):
            values = (
                0.05
                + 0.03 * torch.randn(runs, 1, generator=generator)
                + 0.1**0.5 * torch.randn(1, 1000, generator=generator)
                + 0.1**0.5 * torch.randn(runs, 1000, generator=generator)
            )
            wins += mean_over_runs(values).interval[0] > 0
        return wins / 300

    assert 0.72 < share(needed) < 0.93
    assert share(max(2, needed // 2)) < 0.72


def test_a_correction_for_several_tests_needs_more_runs_and_images():
    components = Components(runs=0.03**2, images=0.1, rest=0.1)
    found = Estimate(0.05, (0, 0), 0.5, (0.0, 0.1, 0.05), 1000, components)
    alone, corrected = runs_needed(found), runs_needed(found, tests=7)
    assert corrected > alone
    decided = Estimate(0.05, (0, 0), 0.5, (0.05,) * corrected, 1000, components)
    assert 7 * p_value(0.05, components, corrected, 1000) < 0.05  # Holm's correction of the smallest of seven
    assert images_needed(decided, tests=7) > images_needed(decided)


def test_no_number_of_runs_decides_with_too_few_images():
    components = Components(runs=1e-4, images=0.2, rest=0.1)
    found = Estimate(0.01, (0, 0), 0.5, (0.0, 0.02), 200, components)
    assert runs_needed(found) is None
    assert runs_needed(found, images=100_000) is not None
    assert images_needed(Estimate(0.05, (0, 0), 0.5, (0.0, 0.1), 200, Components(1e-6, 0.2, 0.1))) > 200
