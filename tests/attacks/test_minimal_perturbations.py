"""Attacks without a fixed ball: projections, FAB, FMN and DDN on linear models, whose distances have a closed form."""

import pytest
import torch

from robust_lr import attacks
from robust_lr.attacks.arguments import distances
from robust_lr.attacks.projections import onto_hyperplane, onto_l1_ball

DUALS = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def linear(classes=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, classes))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(16, 3, 4, 4, generator=generator)  # far enough from 0 and 1 for the closed form
    return x, linear()(x).argmax(1)


def shortest(model, x, labels, norm):
    """Distance to the nearest boundary of a linear model: the gap of the logits over the dual norm of the weights.

    In L-infinity and L2 the pixel range does not matter here; in L1 it does.
    """
    weights, logits = model[1].weight.detach(), model(x).detach()
    found = []
    for other in range(logits.shape[1]):
        gap = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        difference = weights[labels] - weights[other]
        slope = torch.linalg.vector_norm(difference, ord=DUALS[norm], dim=1)
        length = gap / slope if norm != "l1" else filled(x.flatten(1), difference, gap)
        found.append(torch.where(labels != other, length, torch.inf))
    return torch.stack(found).amin(0)


def filled(x, difference, gap):
    """In L1, the pixels of the largest weights go to the end of their range, one after the other."""
    lengths = []
    for pixels, weights, left in zip(x, difference, gap.tolist(), strict=True):
        length = 0.0
        for at in weights.abs().argsort(descending=True).tolist():
            room, weight = float(pixels[at] if weights[at] > 0 else 1 - pixels[at]), float(weights[at].abs())
            step = max(min(room, left / max(weight, 1e-12)), 0.0)
            length, left = length + step, left - step * weight
        lengths.append(length)
    return torch.tensor(lengths)


@pytest.mark.parametrize("norm", DUALS)
def test_fab_finds_the_nearest_point_of_the_target_s_boundary(batch, norm):
    x, labels = batch
    model = linear(2)
    labels = model(x).argmax(1)
    x_adv = attacks.fab(model, x, labels, 1 - labels, norm=norm, steps=30)
    assert (model(x_adv).argmax(1) != labels).all()
    exact = shortest(model, x, labels, norm)
    assert torch.allclose(distances(x, x_adv, norm), exact, rtol=0.06)
    assert (distances(x, x_adv, norm) >= exact * (1 - 1e-4)).all()


@pytest.mark.parametrize("norm", DUALS)
def test_fmn_finds_the_smallest_perturbation(batch, norm):
    x, labels = batch
    x_adv = attacks.fmn(linear(), x, labels, norm=norm, steps=300)
    assert (linear()(x_adv).argmax(1) != labels).all()
    exact = shortest(linear(), x, labels, norm)
    ratio = distances(x, x_adv, norm) / exact
    assert ratio.median() < 1.05
    assert (ratio > 1 - 1e-4).all()


def test_ddn_finds_the_smallest_perturbation(batch):
    x, model = batch[0], linear(2)  # of more classes, cross-entropy does not point to the nearest boundary
    labels = model(x).argmax(1)
    x_adv = attacks.ddn(model, x, labels, steps=200, radius=0.1, gamma=0.01)
    assert (model(x_adv).argmax(1) != labels).all()
    ratio = distances(x, x_adv, "l2") / shortest(model, x, labels, "l2")
    assert ratio.median() < 1.05


@pytest.mark.parametrize("attack", [attacks.fmn, attacks.ddn])
def test_where_nothing_is_found_the_image_itself_comes_back(batch, attack):
    x, _ = batch
    constant = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    torch.nn.init.zeros_(constant[1].weight)
    labels = constant(x).argmax(1)
    assert torch.equal(attack(constant, x, labels, steps=5), x)


@pytest.mark.parametrize("norm", DUALS)
def test_a_step_to_a_hyperplane_is_the_shortest_one(norm):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 20, generator=generator)
    normal = torch.randn(50, 20, generator=generator)
    inside = torch.rand(50, 20, generator=generator)  # of [0, 1], so that the hyperplane meets it
    step = onto_hyperplane(points, normal, (normal * inside).sum(1), norm)
    assert torch.allclose((normal * (points + step)).sum(1), (normal * inside).sum(1), atol=1e-4)
    assert ((points + step - 0.5).abs() < 0.5 + 1e-5).all()
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    own = torch.linalg.vector_norm(step, ord=order, dim=1)
    assert (own <= torch.linalg.vector_norm(inside - points, ord=order, dim=1) + 1e-5).all()
    # no mixture of the step with another way to the hyperplane is shorter
    for share in (0.01, 0.1, 0.5):
        other = (1 - share) * step + share * (inside - points)
        assert (own <= torch.linalg.vector_norm(other, ord=order, dim=1) + 1e-5).all()


def test_an_unreachable_hyperplane_is_approached_as_far_as_the_range_allows():
    points, normal = torch.full((1, 4), 0.5), torch.tensor([[1.0, -2.0, 0.0, 3.0]])
    for norm in DUALS:
        step = onto_hyperplane(points, normal, torch.tensor([1e3]), norm)
        assert (points + step).tolist() == [[1.0, 0.0, 0.5, 1.0]]


@pytest.mark.parametrize("eps", [0.5, 3.0, 40.0])
def test_the_projection_to_the_l1_ball_is_the_nearest_point(eps):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 1, 6, 6, generator=generator)
    delta = torch.randn(20, 1, 6, 6, generator=generator)
    found = onto_l1_ball(x, delta, eps)
    assert (found.abs().sum(dim=(1, 2, 3)) <= eps * (1 + 1e-5)).all()
    assert ((x + found - 0.5).abs() < 0.5 + 1e-6).all()
    far = (found - delta).square().sum(dim=(1, 2, 3))
    for _ in range(50):  # feasible points are no nearer
        other = torch.rand(20, 1, 6, 6, generator=generator) - x
        other = other * (eps / other.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp_max(1)
        mixed = found + 0.1 * (other - found)
        assert ((mixed - delta).square().sum(dim=(1, 2, 3)) >= far - 1e-4).all()


def test_gradients_that_are_not_finite_cannot_pass_for_robustness(batch):
    x, labels = batch

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    model = linear()
    seen = []
    attacks.fmn(lambda z: model(Broken.apply(z)), x, labels, steps=2, observe=lambda step, query, _: seen.append(query))
    assert seen[1].isnan().all()
