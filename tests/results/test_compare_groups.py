import json
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.protocols.pgd import PGD
from robust_lr.results.compare_groups import compare_groups
from robust_lr.results.stored import read_evaluation
from robust_lr.utils.errors import InputError

AIMED = PGD(eps=16 / 255, step_size=4 / 255, steps=2, targeted=True)
SEEDS = (0, 1, 2)


def linear(steps, seed):
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(300 * seed, 300 * seed + 300))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two kinds of networks, trained for long and for a short time, three training runs of each; and what differs."""
    folder, data = tmp_path_factory.mktemp("groups"), rlr.data.load("fashion-mnist-mini", "test").take(100)
    for name, steps in (("long", 60), ("short", 3)):
        for seed in SEEDS:
            rlr.evaluate(linear(steps, seed), data, AIMED, seed=seed, out=folder / f"{name}-{seed}", name=name)
    rlr.evaluate(linear(3, 2), data.take(90), AIMED, seed=2, out=folder / "fewer", name="short")
    return folder


def group(runs, name):
    return [runs / f"{name}-{seed}" for seed in SEEDS]


def test_groups_are_paired_by_image_within_seeds(runs):
    comparison = compare_groups([group(runs, "long"), group(runs, "short")])
    assert comparison.seeds == SEEDS
    (difference,) = comparison.differences_in("robust")
    assert (difference.first, difference.second) == ("long", "short")
    per_seed = [
        sum(a.robust - b.robust for a, b in zip(read_evaluation(x).rows, read_evaluation(y).rows, strict=True)) / 100
        for x, y in zip(group(runs, "long"), group(runs, "short"), strict=True)
    ]
    assert difference.estimate.per_run == pytest.approx(per_seed)
    means = [comparison.accuracies[name]["robust"].value for name in ("long", "short")]
    assert difference.estimate.value == pytest.approx(means[0] - means[1])
    (clean,) = comparison.differences_in("clean")
    assert clean.estimate.interval[0] > 0  # 60 steps are better than 3


def test_runs_that_cannot_be_compared_are_refused(runs):
    long, short = group(runs, "long"), group(runs, "short")
    for groups, words in [
        ([long], "two groups"),
        ([long[:1], short[:1]], "two training runs"),
        ([long, short[:2]], "3, 2 runs"),
        ([long, short[::-1]], "seed is 0 in the first, 2 in the second"),
        ([long, [*short[:2], runs / "fewer"]], "n is 100 in the first, 90"),
        ([long, [short[0], short[0], short[2]]], "same weights"),
    ]:
        with pytest.raises(InputError, match=words):
            compare_groups(groups)


def test_the_command_takes_groups(runs, tmp_path):
    words = [["--group", *map(str, group(runs, name))] for name in ("long", "short")]
    outcome = CliRunner().invoke(main, ["compare", *words[0], *words[1], "--json", str(tmp_path / "out.json")])
    assert outcome.exit_code == 0, outcome.output
    assert "runs to" in outcome.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["seeds"] == [0, 1, 2]
    for one, other in pairwise(record["differences"]):
        assert one["figure"] != other["figure"]
    for wrong in (["--group"], ["--group", "--figure", "robust"], [], [str(runs / "long-0"), *words[0]]):
        outcome = CliRunner().invoke(main, ["compare", *wrong])
        assert outcome.exit_code == 2, wrong
