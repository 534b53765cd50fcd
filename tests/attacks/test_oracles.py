"""Attacks on models whose best perturbation is known in closed form, and against torchattacks to the bit."""

import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from robust_lr.attacks.auto_pgd import apgd
from robust_lr.attacks.losses import LOSSES, cross_entropy, dlr, lead, margin
from robust_lr.attacks.pgd import pgd_l2, pgd_linf
from robust_lr.attacks.square_search import square
from robust_lr.utils.errors import InputError

EPS = 0.1


@pytest.fixture(scope="module")
def torchattacks():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*doesn't match a supported version")
        import torchattacks
    return torchattacks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def interior(n, size=6):
    """Images that no attack of this file pushes out of [0, 1]: there the two projections of L2 do not disturb."""
    return 0.3 + 0.4 * torch.rand(n, 1, size, size, generator=generator(), dtype=torch.float64)


class Axis(nn.Module):
    """Four classes, one direction w that matters: class 0 gains along it, class 1 loses, the others stay behind."""

    def __init__(self, size=6):
        super().__init__()
        self.w = torch.randn(size * size, generator=generator(1), dtype=torch.float64) / size**2
        self.gain = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
        self.bias = torch.tensor([4.0, 3.9, 0.0, -0.5], dtype=torch.float64)

    def forward(self, x):
        return (x.flatten(1) @ self.w)[:, None] * self.gain + self.bias

    def optimum(self, x, away, norm, eps=EPS):
        """The image in the ball that is farthest from class ``away``, 0 or 1; interior images only."""
        sign = (2 * away.double() - 1).view(-1, 1, 1, 1)
        w = self.w.view_as(x[0])
        return x + sign * eps * (w.sign() if norm == "linf" else w / w.norm())


def problem(n, targeted):
    x, away = interior(n), torch.arange(n) % 2
    return Axis(), x, away, 1 - away if targeted else away


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_the_optimum_in_linf(targeted, loss, n, momentum, random_start):
    model, x, away, labels = problem(n, targeted)
    start = x + EPS * (2 * torch.rand(x.shape, generator=generator(2), dtype=x.dtype) - 1) if random_start else None
    x_adv = pgd_linf(
        model, x, labels, eps=EPS, step_size=EPS / 2, steps=6, targeted=targeted, loss=LOSSES[loss], momentum=momentum,
        true_labels=away, start=start,
    )  # fmt: skip
    torch.testing.assert_close(x_adv, model.optimum(x, away, "linf"), rtol=0, atol=1e-15)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_the_optimum_in_l2(targeted, loss, n, momentum, random_start):
    model, x, away, labels = problem(n, targeted)
    noise = torch.randn(x.shape, generator=generator(2), dtype=x.dtype)
    start = x + 0.9 * EPS * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) if random_start else None
    x_adv = pgd_l2(
        model, x, labels, eps=EPS, step_size=EPS, steps=60, targeted=targeted, loss=LOSSES[loss], momentum=momentum,
        true_labels=away, start=start,
    )  # fmt: skip
    torch.testing.assert_close(x_adv, model.optimum(x, away, "l2"), rtol=0, atol=1e-12)
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= EPS + 1e-12


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [1, 5])
def test_apgd_comes_by_the_optimum(norm, targeted, loss, n):
    model, x, away, _ = problem(n, targeted)
    best = torch.full((n,), torch.inf, dtype=torch.float64)

    def observe(step, query, logits):
        torch.minimum(best, lead(logits, away), out=best)

    apgd(
        model, x, away, eps=EPS, start=x, norm=norm, steps=100, targets=1 - away if targeted else None,
        loss=LOSSES[loss], observe=observe,
    )  # fmt: skip
    torch.testing.assert_close(best, lead(model(model.optimum(x, away, norm)), away), rtol=1e-9, atol=0)


def test_square_climbs_towards_the_optimum_and_never_beyond():
    model, x, away, _ = problem(6, False)
    leads = []

    def observe(step, query, logits):
        leads.append((query, lead(logits, away)))

    x_adv = square(model, x, away, torch.arange(6), eps=EPS, queries=1000, observe=observe)
    best = lead(model(model.optimum(x, away, "linf")), away)
    clean = lead(model(x), away)
    reached = torch.stack([found for _, found in leads]).amin(0)
    assert (reached >= best - 1e-12).all()
    assert ((clean - reached) > 0.4 * (clean - best)).all()  # single pixels of the last row and column stay
    for query in (*(query for query, _ in leads), x_adv):
        assert (query - x).abs().max() <= EPS + 1e-12
    assert all(not torch.equal(a, b) for (a, _), (b, _) in pairwise(leads))


def test_the_squares_of_an_image_depend_on_seed_and_id_alone():
    model, x, away, _ = problem(8, False)

    def run(rows, ids, seed=0):
        return square(model, x[rows], away[rows], ids, eps=EPS, queries=30, seed=seed)

    ids, rows = torch.arange(100, 108), torch.tensor([5, 2, 7])
    whole = run(torch.arange(8), ids)
    assert torch.equal(run(rows, ids[rows]), whole[rows])
    assert (run(torch.arange(8), ids, seed=1) != whole).flatten(1).any(1).all()
    assert (run(torch.arange(8), ids + 1) != whole).flatten(1).any(1).all()


def test_the_squares_shrink_as_in_the_official_schedule():
    from robust_lr.attacks.square_search import SquareSearch

    steps = torch.tensor([0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 4001, 8001])
    sides = SquareSearch(0.1, 9000, 0.8, 0).sides(steps, 32, 32)
    shares = [0.8, 0.8, *(0.8 / 2**k for k in (1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 9))]
    assert sides.tolist() == [max(1, round((share * 32 * 32) ** 0.5)) for share in shares]
    assert SquareSearch(0.1, 10, 1.0, 0).sides(steps[:1], 4, 32).tolist() == [4]  # never beyond the image


def test_losses_have_their_published_values():
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.0, 5.0, 4.0, 1.0]])
    labels, targets = torch.tensor([0, 2]), torch.tensor([1, 0])
    torch.testing.assert_close(margin(logits, labels), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(margin(logits, labels, targets), torch.tensor([-2.0, -5.0]))
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-(3 - 2) / (3 - 1.0), -(4 - 5) / (5 - 1.0)]))
    expected = torch.tensor([-(3 - 1) / (3 - 0.5 * (1 - 1)), -(4 - 0) / (5 - 0.5 * (1 + 0.0))])
    torch.testing.assert_close(dlr(logits, labels, targets), expected)
    torch.testing.assert_close(cross_entropy(logits, labels), -logits.log_softmax(1)[[0, 1], [0, 2]])
    torch.testing.assert_close(cross_entropy(logits, labels, targets), logits.log_softmax(1)[[0, 1], [1, 0]])


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_dlr_does_not_feel_the_scale_of_the_logits(scale):
    logits = torch.randn(20, 5, generator=generator(), dtype=torch.float64)
    labels, targets = torch.arange(20) % 5, (torch.arange(20) + 1) % 5
    for aim in (None, targets):
        torch.testing.assert_close(dlr(scale * logits, labels, aim), dlr(logits, labels, aim))


@pytest.mark.parametrize(("classes", "targets", "needed"), [(2, None, 3), (3, torch.tensor([1]), 4)])
def test_dlr_says_how_many_classes_it_needs(classes, targets, needed):
    with pytest.raises(InputError, match=f"DLR loss needs {needed} classes, not {classes}"):
        dlr(torch.zeros(1, classes), torch.tensor([0]), targets)


# against torchattacks


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(392, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_torchattacks_apgd_to_the_bit(torchattacks, norm, loss):
    model, eps = conv_net(), {"linf": 10 / 255, "l2": 0.6}[norm]
    x = torch.rand(16, 3, 16, 16, generator=generator())
    y = model(x).argmax(1)
    other = torchattacks.APGD(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=100, seed=0, loss=loss)
    torch.manual_seed(0)
    expected_best, _, expected_loss, expected = other.attack_single_run(x, y)

    torch.manual_seed(0)
    if norm == "linf":
        t = 2 * torch.rand(x.shape) - 1
        scale = t.reshape(16, -1).abs().max(dim=1)[0].reshape(-1, 1, 1, 1)
    else:
        t = torch.randn(x.shape)
        scale = (t**2).sum(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-12
    start = (x + eps * torch.ones(16, 1, 1, 1) * t / scale).clamp(0, 1)
    broken, best, best_loss = start.clone(), start.clone(), torch.full((16,), -torch.inf)
    objective = LOSSES[{"ce": "cross-entropy", "dlr": "dlr"}[loss]]

    def observe(step, query, logits):
        wrong, value = logits.argmax(1) != y, objective(logits, y, None)
        broken[wrong] = query[wrong]
        best[value > best_loss] = query[value > best_loss]
        torch.maximum(best_loss, value, out=best_loss)

    end = apgd(model, x, y, eps=eps, start=start, norm=norm, loss=objective, observe=observe)
    observe(100, end, model(end).detach())
    assert torch.equal(best, expected_best)
    assert torch.equal(best_loss, expected_loss)
    assert torch.equal(broken, expected)
    wrong = int((model(expected).argmax(1) != y).sum())
    assert 0 < wrong < 16


@pytest.mark.parametrize("targeted", [False, True])
def test_momentum_is_torchattacks_mi_fgsm_to_the_bit(torchattacks, targeted):
    model, x = conv_net(), torch.rand(8, 3, 16, 16, generator=generator())
    y = (model(x).argmax(1) + targeted) % 10
    other = torchattacks.MIFGSM(model, eps=8 / 255, alpha=2 / 255, steps=10, decay=0.9)
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    ours = pgd_linf(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, momentum=0.9, targeted=targeted)
    assert torch.equal(ours, other(x, y))


def test_l2_pgd_is_torchattacks_to_rounding(torchattacks):
    model, x = conv_net(), torch.rand(8, 3, 16, 16, generator=generator())
    y = model(x).argmax(1)
    other = torchattacks.PGDL2(model, eps=0.5, alpha=0.1, steps=10, random_start=False)
    ours = pgd_l2(model, x, y, eps=0.5, step_size=0.1, steps=10)
    torch.testing.assert_close(ours, other(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [partial(pgd_l2, step_size=0.1, steps=2), partial(apgd, steps=2, norm="l2")])
def test_a_start_outside_the_l2_ball_is_refused(attack):
    model, x, away, _ = problem(2, False)
    with pytest.raises(InputError, match=r"start: is 0\.6 away from the images, outside the ball of eps = 0\.5"):
        attack(model, x, away, eps=0.5, start=x + 0.1)


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_an_l2_distance_must_be_one(eps):
    model, x, away, _ = problem(2, False)
    with pytest.raises(InputError, match="an L2 distance of pixels"):
        pgd_l2(model, x, away, eps=eps, step_size=0.1, steps=1)
    pgd_l2(model, x, away, eps=3.0, step_size=2.0, steps=1)
