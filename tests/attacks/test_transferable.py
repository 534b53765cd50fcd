"""Diverse inputs and smoothed gradients: against torchattacks, and their own promises."""

import pytest
import torch
import torchattacks
from torch import nn

from robust_lr.attacks.transferable import diversify, shrink_and_pad, smooth_gradient
from robust_lr.protocols import PGD
from robust_lr.utils.errors import InputError


@pytest.fixture
def x():
    return torch.rand((5, 3, 32, 32), generator=torch.Generator().manual_seed(0))


def library(kind, **options):
    return kind(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), **options)


def test_a_shrunk_image_is_that_of_torchattacks(x, monkeypatch):
    attack = library(torchattacks.DIFGSM, diversity_prob=1.0)
    drawn = iter([29, 2, 1])  # side, rows above, columns before
    monkeypatch.setattr(torch, "randint", lambda low, high, size, dtype: torch.tensor([next(drawn)], dtype=dtype))
    monkeypatch.setattr(torch, "rand", lambda n: torch.zeros(n))
    assert torch.equal(attack.input_diversity(x), shrink_and_pad(x, 29, 2, 1))


def test_a_smoothed_gradient_is_that_of_torchattacks(x):
    attack = library(torchattacks.TIFGSM)
    kernel = attack.stacked_kernel
    theirs = torch.nn.functional.conv2d(x, kernel, stride=1, padding="same", groups=3)
    torch.testing.assert_close(smooth_gradient(x, 15), theirs)
    single = torch.cat([smooth_gradient(image, 15) for image in torch.split(x, 1)])
    assert torch.equal(single, smooth_gradient(x, 15))


def test_smoothing_spreads_a_point_over_the_kernel_and_keeps_its_mass():
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1
    spread = smooth_gradient(point, 5)
    assert (spread > 0).sum() == 25
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    assert spread.argmax() == point.argmax()


def test_diverse_images_are_functions_of_seed_id_and_draw(x):
    ids, draws = torch.arange(5), torch.tensor([0, 1, 2, 3, 4])
    whole = diversify(x, ids, draws, 1.0, seed=1)
    assert whole.shape == x.shape
    assert not any(torch.equal(a, b) for a, b in zip(whole, x, strict=True))
    for i in range(5):
        assert torch.equal(diversify(x[i : i + 1], ids[i : i + 1], draws[i : i + 1], 1.0, seed=1)[0], whole[i])
    assert not torch.equal(diversify(x, ids, draws + 1, 1.0, seed=1), whole)
    assert torch.equal(diversify(x, ids, draws, 0.0, seed=1), x)
    many = torch.zeros(400, 1, 10, 10) + 1
    changed = (diversify(many, torch.arange(400), torch.zeros(400, dtype=torch.int64), 0.5, seed=0) != many).flatten(1)
    assert 150 < int(changed.any(1).sum()) < 250


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diversity": 1.5}, "diversity = 1.5"),
        ({"smoothing": 4}, "smoothing = 4"),
        ({"smoothing": 65}, "smoothing = 65"),
        ({"diversity": 0.5, "steps": 2**24}, "keyed"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        PGD(**{"eps": 0.1, "step_size": 0.1, "steps": 1, **values})


def test_training_refuses_them(x):
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InputError, match="train without"):
        PGD(eps=0.1, step_size=0.1, steps=1, smoothing=3).perturb(
            nn.Flatten(), x, labels, labels, torch.arange(5), seed=0
        )
