"""Ledgers of three small networks, which every test of a report reads."""

import numpy as np
import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.protocols import APGD, PGD, Cascade, Square, Sweep
from robust_lr.reports.record import build

EPS = 24 / 255
NAMES = ("small_net", 'net & "friends" <b>', "100 % linear")

CASCADE = Cascade(
    name="cascade",
    parts=(
        APGD(name="apgd-ce", eps=EPS, steps=4),
        Square(name="square", eps=EPS, queries=8, p=0.8),
    ),
)
PROTOCOLS = (
    PGD(name="pgd", eps=EPS, step_size=EPS / 4, steps=8, record=(1, 2, 4, 8)),
    PGD(name="pgd-targeted", eps=EPS, step_size=EPS / 4, steps=4, targeted=True),
    CASCADE,
)
SWEEP = Sweep(
    name="by-eps",
    axis="eps",
    parts=tuple(
        PGD(name=f"eps-{level}", eps=level / 255, step_size=level / 1020, steps=4, criterion="worst")
        for level in (0, 8, 64)
    ),
)


def network(noise):
    """The class whose pattern, with noise, is nearest to an image: a linear classifier of 3 classes."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    patterns = patterns_of_classes().flatten(1) + noise * torch.randn(3, 36, generator=generator)
    net[1].weight.data, net[1].bias.data = patterns, -patterns.square().sum(1) / 2
    return net


def patterns_of_classes():
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def images(n=60):
    labels = np.arange(n) % 3
    noise = np.random.default_rng(0).normal(0, 0.35, (n, 1, 6, 6)).astype(np.float32)
    pixels = np.clip(patterns_of_classes().numpy()[labels] + noise, 0, 1)
    return rlr.data.from_arrays(pixels, labels, name="three_patterns")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with attacks by two seeds and a sweep."""
    folder = tmp_path_factory.mktemp("runs")
    models = dict(zip(NAMES, map(network, (0.02, 0.3, 0.5)), strict=True))
    rlr.benchmark(models, images(), PROTOCOLS, out=folder / "seed-0")
    rlr.benchmark(models, images(), PROTOCOLS[:1], out=folder / "seed-1", seed=1)
    for number, (name, model) in enumerate(models.items()):
        rlr.sweep(model, images(), SWEEP, out=folder / "sweeps" / str(number), name=name)
    return folder


@pytest.fixture(scope="session")
def report(runs):
    return build([runs])
