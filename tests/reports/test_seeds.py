"""The section on seeds: spreads, and differences over training runs."""

import numpy as np
import pytest
from conftest_of_reports import PROTOCOLS, images, network

import robust_lr as rlr
from robust_lr.reports.record import build
from robust_lr.reports.sections.seeds import seeds
from robust_lr.results.compare_groups import compare_groups

NOISE = {"strong": (0.01, 0.02, 0.03), "weak": (0.9, 1.0, 1.1)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two kinds of networks, three training runs of each."""
    folder = tmp_path_factory.mktemp("trained")
    for name, noises in NOISE.items():
        for seed, noise in enumerate(noises):
            rlr.evaluate(
                network(noise), images(), PROTOCOLS[0], out=folder / name / f"seed-{seed}", seed=seed, name=name
            )
    return folder


def test_networks_with_several_training_runs_are_compared_as_by_the_command(trained):
    spread, runs = seeds(build([trained])).blocks
    assert [row[0].text for row in spread.rows] == list(NOISE)
    assert runs.title == "Differences over training runs"
    groups = [[trained / name / f"seed-{seed}" for seed in range(3)] for name in NOISE]
    expected = compare_groups(groups).differences_in("robust")
    assert len(runs.rows) == len(expected) == 1
    cells = runs.rows[0]
    estimate = expected[0].estimate
    assert [cells[2].text, cells[3].text] == [expected[0].first, expected[0].second]
    assert cells[4].text == f"{100 * estimate.value:+.1f}"
    assert cells[4].strong == (expected[0].p_holm < 0.05)
    assert cells[7].text == "3"


def test_seeds_of_the_attack_alone_are_not_compared(tmp_path):
    for name, noise in (("a", 0.2), ("b", 0.4)):
        for seed in (0, 1):
            rlr.evaluate(
                network(noise), images(), PROTOCOLS[0], out=tmp_path / name / f"seed-{seed}", seed=seed, name=name
            )
    assert [table.key for table in seeds(build([tmp_path])).blocks] == ["seeds"]


def test_networks_with_different_seeds_are_not_compared(trained, tmp_path):
    for seed, noise in ((7, 0.2), (8, 0.3)):
        rlr.evaluate(
            network(noise), images(), PROTOCOLS[0], out=tmp_path / "other" / f"seed-{seed}", seed=seed, name="other"
        )
    blocks = seeds(build([trained / "weak", tmp_path / "other"])).blocks
    assert [table.key for table in blocks] == ["seeds"]
    assert np.isfinite(blocks[0].rows[0][4].sort)
