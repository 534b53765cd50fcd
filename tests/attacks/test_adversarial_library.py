"""FMN and DDN against adversarial-library (adv-lib) on the same model and images: `make xval` installs and runs it."""

import sys
import types

import pytest
import torch
from helpers import Watched
from torch import nn

import robust_lr as rlr
from robust_lr.attacks.arguments import distances
from robust_lr.attacks.decoupled_direction_norm import ddn
from robust_lr.attacks.fast_minimum_norm import fmn

NORMS = {"linf": float("inf"), "l2": 2, "l1": 1}
STEPS = 60


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", types.ModuleType("visdom"))  # for plots, which nothing here draws
    pytest.importorskip("adv_lib")
    return pytest.importorskip("adv_lib.attacks", exc_type=ImportError)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 10)
    )


def problem(name):
    """A model, 32 images, and the classes that it predicts."""
    torch.manual_seed(0)
    if name == "shipped":
        model, x = rlr.load_model(), rlr.data.load("fashion-mnist-mini", "test").batch(torch.arange(32))[0]
    else:
        model, x = {"linear": linear, "convolutional": convolutional}[name](), torch.rand(32, 3, 8, 8)
    model = model.eval().requires_grad_(False)
    return model, x, model(x).argmax(1)


def found(model, x, y, x_adv, norm):
    """Distances of the images that are misclassified, the farthest that there is for the others."""
    farthest = distances(x, torch.where(x < 0.5, 1.0, 0.0), norm)
    return torch.where(model(x_adv).argmax(1) != y, distances(x, x_adv, norm), farthest)


@pytest.mark.parametrize("name", ["linear", "convolutional"])
def test_ddn_asks_the_queries_of_the_library_to_rounding(library, name):
    """Without the library's rounding to 256 levels, which is on by default."""
    model, x, y = problem(name)
    theirs, ours = Watched(model), Watched(model)
    library.ddn(theirs, x, y, steps=STEPS, levels=None)
    ddn(ours, x, y, steps=STEPS)
    assert len(theirs.queries) == len(ours.queries) == STEPS
    for step, (own, other) in enumerate(zip(ours.queries, theirs.queries, strict=True)):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5, msg=f"query {step}")


@pytest.mark.parametrize("name", ["linear", "convolutional", "shipped"])
@pytest.mark.parametrize("attack", ["ddn", "fmn-linf", "fmn-l2", "fmn-l1"])
def test_perturbations_are_as_small_at_as_many_passes(library, name, attack):
    """By optimality as AttackBench (Cina et al. 2024) has it: 1 for the smallest perturbations known, 0 for none.

    It is the area under robust accuracy over eps up to the largest of them, compared with the smallest area known.
    """
    model, x, y = problem(name)
    norm = "l2" if attack == "ddn" else attack.removeprefix("fmn-")
    if attack == "ddn":
        runs = [library.ddn(model, x, y, steps=STEPS, levels=None), ddn(model, x, y, steps=STEPS)]
    else:
        runs = [library.fmn(model, x, y, norm=NORMS[norm], steps=STEPS), fmn(model, x, y, norm=norm, steps=STEPS)]
    theirs, ours = (found(model, x, y, x_adv, norm) for x_adv in runs)
    best = torch.minimum(theirs, ours)
    for other in (fmn(model, x, y, norm=norm, steps=4 * STEPS),):
        best = torch.minimum(best, found(model, x, y, other, norm))
    largest = best.max()
    room = (largest - best).mean()
    optimality = [float(1 - (d.clamp_max(largest) - best).mean() / room) for d in (ours, theirs)]
    print(f"{attack} on {name}: ours {optimality[0]:.4f}, adv-lib {optimality[1]:.4f}")
    assert optimality[0] >= optimality[1] - 0.01
