"""Against the official AutoAttack (fra31/auto-attack) in the folder AUTOATTACK: `AUTOATTACK=FOLDER make xval`."""

import os

import pytest
import torch
from helpers import Watched
from torch import nn

from robust_lr.attacks.arguments import distances
from robust_lr.attacks.auto_pgd import apgd
from robust_lr.attacks.fast_adaptive_boundary import FastAdaptiveBoundary, fab
from robust_lr.attacks.fast_adaptive_boundary import find_nearest_boundary as nearest
from robust_lr.attacks.losses import cross_entropy, dlr
from robust_lr.attacks.square_search import SquareSearch
from robust_lr.attacks.starts import on_surface
from robust_lr.utils.rng import SEARCH, uniform

pytestmark = pytest.mark.skipif("AUTOATTACK" not in os.environ, reason="AUTOATTACK names no folder")

NORMS = {"linf": ("Linf", 0.06), "l2": ("L2", 0.8), "l1": ("L1", 6.0)}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(os.environ.get("AUTOATTACK", ""))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(),
        nn.Linear(72, 10),
    ).eval()  # fmt: skip
    model.requires_grad_(False)
    x = (1.4 * torch.rand(16, 3, 8, 8) - 0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_apgd_asks_the_official_queries(problem, norm, loss):
    """From one start, iterate by iterate; images that are broken stay in, as ours leave by the harness alone."""
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    model, x, y = problem
    name, eps = NORMS[norm]
    watched = Watched(model)
    kind = APGDAttack_targeted if loss == "targeted" else APGDAttack
    options = {} if loss == "targeted" else {"loss": loss}
    attack = kind(watched, n_iter=25, norm=name, eps=eps, seed=0, device="cpu", **options)
    attack.init_hyperparam(x)
    start = on_surface(x, torch.arange(16), eps, norm, seed=0)
    targets = None
    if loss == "targeted":
        attack.y_target = targets = model(x).sort(dim=1)[1][:, -2]
        attack.loss = "dlr-targeted"
    watched.queries.clear()
    attack.attack_single_run(x, y, x_init=start)
    ours = []
    apgd(
        model, x, y, eps=eps, start=start, norm=norm, steps=25, targets=targets,
        loss=cross_entropy if loss == "ce" else dlr, observe=lambda step, query, logits: ours.append(query.clone()),
    )  # fmt: skip
    assert len(watched.queries) >= len(ours) == 25
    for step, (query, official) in enumerate(zip(ours, watched.queries, strict=False)):
        if norm == "linf":
            assert torch.equal(query, official), f"query {step}"
        else:  # lengths are summed in another order, that of torchattacks
            torch.testing.assert_close(query, official, rtol=0, atol=1e-5, msg=f"query {step}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_finds_perturbations_as_small_as_the_official_ones(problem, norm, targeted):
    """Projections round otherwise, so that iterates drift apart: distances within 1 % for 9 of 10 images."""
    from autoattack.fab_pt import FABAttack_PT

    model, x, y = problem
    name, eps = NORMS[norm]
    attack = FABAttack_PT(model, norm=name, n_restarts=1, n_iter=40, eps=eps, seed=0, device="cpu", targeted=targeted)
    attack.target_class = 2
    official = attack.attack_single_run(x, y, use_rand_start=False, is_targeted=targeted)
    if targeted:
        ours = fab(model, x, y, model(x).sort(dim=1)[1][:, -2], norm=norm, steps=40)
    else:
        walk = FastAdaptiveBoundary(norm, 40)
        state = walk.begin(x, x, torch.arange(16), torch.zeros(16, dtype=torch.int64))
        for step in range(40):
            _, value, gradient = nearest(model, state["query"], y, norm)
            state = walk.advance(x, state, torch.full((16,), step), value, gradient, y < 0)
            state = walk.settle(x, state, model(state["query"]).argmax(1) != y)
        ours = state["best"]
    theirs, own = distances(x, official, norm), distances(x, ours, norm)
    assert (model(ours).argmax(1) != y).all()
    near = (own - theirs).abs() <= 0.01 * theirs
    assert near.float().mean() >= 0.9
    torch.testing.assert_close(own.mean(), theirs.mean(), rtol=0.01, atol=0)


def test_square_asks_the_official_queries_given_our_draws(problem):
    """The official code draws a place for a batch: it gets images one by one, and our numbers."""
    from autoattack.square import SquareAttack

    model, x, y = problem
    eps, queries = 0.06, 120
    search = SquareSearch(eps, queries, 0.8, 0)
    ids = torch.arange(16)
    zero = torch.zeros_like(ids)
    for i in range(4):
        image, label, one = x[i : i + 1], y[i : i + 1], ids[i : i + 1]
        own = []
        state = search.begin(image, search.first(image, one, zero[:1]), one, zero[:1])
        logits = model(state["query"])
        for step in range(queries):
            own.append(state["query"])
            logits = model(state["query"])
            loss = -(logits[0, label[0]] - logits[0].scatter(0, label, -torch.inf).max())[None]
            if loss > 0:
                break
            state = search.advance(image, state, torch.tensor([step]), loss, image, loss > 0)
        numbers = OurNumbers(search, image, one)
        attack = SquareAttack(
            model, p_init=0.8, n_queries=queries, eps=eps, norm="Linf", seed=0, device="cpu", resc_schedule=False
        )
        seen = []
        attack.predict = lambda z, seen=seen: seen.append(z.clone()) or model(z)
        attack.random_choice = lambda shape, numbers=numbers: numbers.signs(shape)
        attack.random_int = lambda low=0, high=1, shape=(1,), numbers=numbers: numbers.place(low, high)
        attack.init_hyperparam(image)
        attack.attack_single_run(image, label)
        shared = min(len(own), len(seen))
        assert shared > 1
        for step in range(shared):
            assert torch.equal(own[step], seen[step]), f"query {step} of image {i}"


class OurNumbers:
    """Our keyed numbers in the order in which the official code asks for them."""

    def __init__(self, search, image, ids):
        self.step, self.calls = -1, 0
        channels, _height, width = image.shape[1:]
        self.first = uniform(0, SEARCH, ids, (channels, 1, width), 0)
        self.numbers = [uniform(0, SEARCH, ids, (2 + channels,), 1 + step)[0] for step in range(search.steps)]

    def signs(self, shape):
        if self.step < 0:
            self.step = 0
            return torch.where(self.first < 0.5, -1.0, 1.0).view(shape)
        found = torch.where(self.numbers[self.step][2:] < 0.5, -1.0, 1.0).view(shape)
        self.step, self.calls = self.step + 1, 0
        return found

    def place(self, low, high):
        number = self.numbers[self.step][self.calls]
        self.calls += 1
        return (number * (high - low)).long()[None]
