"""Against the official AutoAttack (fra31/auto-attack) in the folder AUTOATTACK: `AUTOATTACK=FOLDER make xval`."""

import os

import pytest
import torch
from helpers import Watched
from torch import nn

from robust_lr.attacks.arguments import distances
from robust_lr.attacks.auto_pgd import apgd
from robust_lr.attacks.auto_pgd_l1 import apgd_l1
from robust_lr.attacks.fast_adaptive_boundary import FastAdaptiveBoundary, fab
from robust_lr.attacks.fast_adaptive_boundary import find_nearest_boundary as nearest
from robust_lr.attacks.losses import cross_entropy, dlr, margin
from robust_lr.attacks.square_lp import WindowSearch
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


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_window_search_asks_the_official_queries_given_our_draws(problem, norm):
    """To rounding. In L1, the official projection leaves 1e-8 where ours leaves zero, and such a remainder is scaled up
    when its window is next drawn (image 14, query 12): one image may differ."""
    from autoattack.square import SquareAttack

    model, x, y = problem
    name, eps = NORMS[norm]
    queries = 100
    search = WindowSearch(norm, eps, queries, 0.8, 0)
    zero = torch.zeros(1, dtype=torch.int64)
    differing, compared = [], 0
    for i in range(16):
        image, label, one = x[i : i + 1], y[i : i + 1], torch.tensor([i])
        own = []
        state = search.begin(image, search.first(image, one, zero), one, zero)
        for step in range(queries + 1):
            own.append(state["query"])
            loss = margin(model(state["query"]), label)
            if loss > 0 or step == queries:
                break
            state = search.advance(image, state, torch.tensor([step]), loss, image, loss > 0)
        numbers = OurWindows(search, image, one)
        attack = SquareAttack(
            model, p_init=0.8, n_queries=queries, eps=eps, norm=name, seed=0, device="cpu", resc_schedule=False
        )
        seen = []
        attack.predict = lambda z, seen=seen: seen.append(z.clone()) or model(z)
        attack.random_choice = numbers.signs
        attack.random_int = numbers.place
        attack.init_hyperparam(image)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", numbers.turn)
            attack.attack_single_run(image, label)
        shared = min(len(own), len(seen))
        compared += shared
        apart = (torch.cat(own[:shared]) - torch.cat(seen[:shared])).abs().amax()
        if len(own) != len(seen) or apart > 5e-5:
            differing.append(i)
    assert compared > 200
    assert len(differing) <= (norm == "l1"), differing


@pytest.mark.parametrize("loss", ["ce", "targeted"])
def test_apgd_l1_asks_the_official_queries(problem, loss):
    """From the official start, to rounding, for 9 of 10 images; rounding may decide a step of the others.

    Our own starts are exactly zero where the official projection leaves 1e-8, which it counts as a changed coordinate.
    """
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    model, x, y = problem
    eps = NORMS["l1"][1]
    watched = Watched(model)
    kind = APGDAttack_targeted if loss == "targeted" else APGDAttack
    options = {} if loss == "targeted" else {"loss": loss}
    attack = kind(watched, n_iter=100, norm="L1", eps=eps, seed=0, device="cpu", use_largereps=True, **options)
    attack.init_hyperparam(x)
    targets = None
    if loss == "targeted":
        attack.y_target = targets = model(x).sort(dim=1)[1][:, -2]
    objective = cross_entropy if loss == "ce" else dlr
    watched.queries.clear()
    reached = attack.decr_eps_pgd(x, y, [3 * eps, 2 * eps, eps], [30, 30, 40])[2]
    ours = []
    last = apgd_l1(
        model, x, y, eps=eps, start=watched.queries[0], steps=100, targets=targets, loss=objective,
        observe=lambda step, query, logits: ours.append(query.clone()),
    )  # fmt: skip
    own, official = torch.stack([*ours, last]), torch.stack(watched.queries)
    assert own.shape == official.shape == (103, *x.shape)
    assert ((own - official).abs().amax((0, 2, 3, 4)) < 1e-5).float().mean() > 0.85
    best = torch.stack([objective(model(query), y, targets) for query in own[62:]]).amax(0)
    torch.testing.assert_close(best, reached, rtol=0.01, atol=0.005)


class Noisy(nn.Module):
    """A model with noise of its own on its logits."""

    def __init__(self, model):
        super().__init__()
        self.model, self.generator = model, torch.Generator().manual_seed(1)

    def forward(self, x):
        logits = self.model(x)
        return logits + 0.05 * torch.randn(logits.shape, generator=self.generator) * logits.abs()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_over_draws_asks_the_official_queries_until_the_first_check(problem, norm, loss):
    """Gradients are averaged over the same draws. The loss that halves the step is a mean here, the last draw there."""
    from autoattack.autopgd_base import APGDAttack

    model, x, y = problem
    name, eps = NORMS[norm]
    watched = Watched(Noisy(model))
    attack = APGDAttack(watched, n_iter=100, norm=name, eps=eps, eot_iter=5, loss=loss, seed=0, device="cpu")
    attack.init_hyperparam(x)
    start = on_surface(x, torch.arange(16), eps, norm, seed=0)
    attack.attack_single_run(x, y, x_init=start)
    official = watched.queries[::5]
    ours = []
    apgd(
        Noisy(model), x, y, eps=eps, start=start, norm=norm, steps=100, eot=5,
        loss=cross_entropy if loss == "ce" else dlr, observe=lambda step, query, logits: ours.append(query.clone()),
    )  # fmt: skip
    assert len(official) == 101
    for step, (query, theirs) in enumerate(zip(ours[:23], official, strict=False)):
        torch.testing.assert_close(query, theirs, rtol=0, atol=0 if norm == "linf" else 5e-5, msg=f"query {step}")


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


class OurWindows:
    """Our keyed numbers of the search with windows, in the order in which the official code asks for them."""

    def __init__(self, search, image, ids):
        channels, height, width = image.shape[1:]
        tiles = (height // (height // 5)) * (width // (width // 5))
        first = uniform(0, SEARCH, ids, (tiles, 1 + channels), 0)[0]
        later = [uniform(0, SEARCH, ids, (5 + channels,), 1 + step)[0] for step in range(search.steps)]
        self.turns = iter([*first[:, 0], *(numbers[4] for numbers in later)])
        self.sign_rows = iter([*first[:, 1:], *(numbers[5:] for numbers in later)])
        self.places = iter([number for numbers in later for number in numbers[:4]])

    def turn(self, *shape):
        return next(self.turns)[None]

    def signs(self, shape):
        return torch.where(next(self.sign_rows) < 0.5, -1.0, 1.0).view(shape)

    def place(self, low, high):
        return (next(self.places) * (high - low)).long()[None]
