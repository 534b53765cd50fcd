"""Cross-validation with other libraries on the same model, images and start: `make xval` installs and runs it."""

import warnings

import pytest
import torch
from torch import nn

from robust_lr.attacks.pgd import pgd_l2, pgd_linf

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10


def optional(name):
    """The library, or a skipped test; their imports warn about their own neighbors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(),
        nn.Linear(72, 10),
    ).eval()  # fmt: skip
    x = (1.4 * torch.rand(16, 3, 8, 8) - 0.2).clamp(0, 1)
    y = model(x).argmax(1)
    return model, x, y, (y + 1) % 10


def started(x, random_start):
    torch.manual_seed(3)
    return (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1) if random_start else None


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_is_torchattacks_pgd_to_the_bit(problem, targeted, random_start):
    library = optional("torchattacks")
    model, x, y, t = problem
    other = library.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=random_start)
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(3)
    expected = other(x, t if targeted else y)
    start = started(x, random_start)
    labels = t if targeted else y
    ours = pgd_linf(model, x, labels, eps=EPS, step_size=STEP, steps=STEPS, targeted=targeted, start=start)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, x)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_is_cleverhans_pgd_to_the_bit(problem, targeted, random_start):
    library = optional("cleverhans.torch.attacks.projected_gradient_descent")
    model, x, y, t = problem
    torch.manual_seed(3)
    expected = library.projected_gradient_descent(
        model, x, EPS, STEP, STEPS, float("inf"), clip_min=0, clip_max=1, y=t if targeted else y, targeted=targeted,
        rand_init=random_start, sanity_checks=False,
    ).detach()  # fmt: skip
    labels = t if targeted else y
    start = started(x, random_start)
    ours = pgd_linf(model, x, labels, eps=EPS, step_size=STEP, steps=STEPS, targeted=targeted, start=start)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_foolbox_pgd_within_a_millionth(problem, targeted, norm):
    library = optional("foolbox")
    model, x, y, t = problem
    eps, step = (EPS, STEP) if norm == "linf" else (0.5, 0.1)
    kind = library.attacks.LinfPGD if norm == "linf" else library.attacks.L2PGD
    criterion = library.criteria.TargetedMisclassification(t) if targeted else library.criteria.Misclassification(y)
    attack = kind(abs_stepsize=step, steps=STEPS, random_start=False)
    _, expected, _ = attack(library.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, criterion, epsilons=eps)
    pgd = pgd_linf if norm == "linf" else pgd_l2
    ours = pgd(model, x, t if targeted else y, eps=eps, step_size=step, steps=STEPS, targeted=targeted)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert not torch.equal(ours, x)
