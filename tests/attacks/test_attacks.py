import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_lr import build_model
from robust_lr.attacks import targets
from robust_lr.attacks.pgd import pgd_linf
from robust_lr.utils.errors import InputError

EPS = 8 / 255


@pytest.fixture(scope="module")
def torchattacks():
    with warnings.catch_warnings():
        # the old release of requests that torchattacks pins complains about newer neighbors
        warnings.filterwarnings("ignore", message=".*doesn't match a supported version")
        import torchattacks
    return torchattacks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, channels=3, size=8, seed=0, dtype=torch.float32):
    """Random pixels, a quarter of them at 0 or 1, where clipping bites."""
    x = torch.rand(n, channels, size, size, generator=generator(seed), dtype=dtype)
    return (1.4 * x - 0.2).clamp(0, 1)


def labels(n, classes=10, seed=1):
    return torch.randint(classes, (n,), generator=generator(seed))


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, stride=2),
        nn.Flatten(), nn.Linear(72, 10),
    ).eval()  # fmt: skip


def lr_net():
    torch.manual_seed(0)
    return build_model("lrnet26", width=0.05, stem="small", channels_per_group=2, num_classes=10).eval()


class Linear(nn.Module):
    """Two classes in double precision: the optimum of every attack is known. Softmax is far from saturated."""

    def __init__(self, seed=0, channels=3, size=8):
        super().__init__()
        self.weight = torch.randn(2, channels * size * size, generator=generator(seed), dtype=torch.float64) / 50

    def forward(self, x):
        return x.flatten(1) @ self.weight.T

    def optimum(self, x, toward, eps):
        direction = (self.weight[toward] - self.weight[1 - toward]).sign().view_as(x)
        return (x + eps * direction).clamp(0, 1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("network", "n"), [(conv_net, 1), (conv_net, 16), (lr_net, 4)])
def test_pgd_equals_torchattacks_to_the_bit(torchattacks, network, n, random_start, targeted):
    model, x, y = network(), images(n), labels(n)
    step = 2 / 255
    other = torchattacks.PGD(model, eps=EPS, alpha=step, steps=6, random_start=random_start)
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(3)
    expected = other(x, y)
    torch.manual_seed(3)
    start = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1) if random_start else None
    ours = pgd_linf(model, x, y, eps=EPS, step_size=step, steps=6, targeted=targeted, start=start)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, x)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_the_optimum_of_a_linear_model_exactly(targeted, n, random_start):
    model, eps = Linear(), 0.1
    x = images(n, dtype=torch.float64)
    y = labels(n, classes=2)
    start = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1) if random_start else None
    x_adv = pgd_linf(model, x, y, eps=eps, step_size=eps / 4, steps=9, targeted=targeted, start=start)
    assert torch.equal(x_adv, model.optimum(x, y if targeted else 1 - y, eps))


def test_the_margin_of_a_linear_model_falls_by_eps_times_the_l1_norm_of_its_weights():
    model, eps, y = Linear(), 0.1, labels(5, classes=2)
    x = images(5, dtype=torch.float64) * 0.8 + 0.1  # nothing is clipped

    def margin(x):
        logits = model(x)
        return (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).flatten()

    x_adv = pgd_linf(model, x, y, eps=eps, step_size=eps, steps=1)
    bound = eps * (model.weight[0] - model.weight[1]).abs().sum()
    torch.testing.assert_close(margin(x) - margin(x_adv), bound.expand(5), rtol=1e-12, atol=0)


def test_no_image_weakens_the_gradient_of_another():
    def model(x):  # sure of class 0: its gradient, about 1e-44, would vanish if it were divided by 64
        brightness = x.flatten(1).mean(1)
        return torch.stack([100 + brightness, -brightness], dim=1)

    x = torch.full((64, 1, 1, 1), 0.5)
    x_adv = pgd_linf(model, x, torch.zeros(64, dtype=torch.int64), eps=0.1, step_size=0.1, steps=1)
    torch.testing.assert_close(x_adv, torch.full_like(x, 0.4))


@settings(deadline=None, max_examples=60)
@given(
    eps=st.floats(0, 1),
    step_size=st.floats(0, 1),
    steps=st.integers(0, 4),
    targeted=st.booleans(),
    seed=st.integers(0, 9),
    corner=st.sampled_from([0.0, 0.5, 1.0, -1.0]),
)
def test_every_iterate_is_in_the_ball_and_in_range(eps, step_size, steps, targeted, seed, corner):
    model, x, y = Linear().to(torch.float64), images(3, seed=seed), labels(3, classes=2)
    start = (x + corner * eps).clamp(0, 1)
    seen = []
    x_adv = pgd_linf(
        lambda x: model(x.double()), x, y, eps=eps, step_size=step_size, steps=steps, targeted=targeted, start=start,
        observe=lambda _, iterate, __: seen.append(iterate),
    )  # fmt: skip
    for iterate in (*seen, x_adv):
        assert iterate.dtype == x.dtype
        assert iterate.min() >= 0
        assert iterate.max() <= 1
        assert (iterate - x).abs().max() <= eps + 1e-6


def test_without_room_or_steps_the_images_stay_as_they_are():
    model, x, y = conv_net(), images(4), labels(4)
    start = (x + 0.01).clamp(0, 1)
    assert torch.equal(pgd_linf(model, x, y, eps=0.0, step_size=0.1, steps=5), x)
    assert torch.equal(pgd_linf(model, x, y, eps=0.1, step_size=0.1, steps=0), x)
    assert torch.equal(pgd_linf(model, x, y, eps=0.1, step_size=0.1, steps=0, start=start), start)
    assert torch.equal(pgd_linf(model, x, y, eps=0.1, step_size=0.0, steps=3, start=start), start)


def test_no_images_are_no_error():
    assert pgd_linf(conv_net(), images(0), labels(0), eps=0.1, step_size=0.1, steps=2, start=images(0)).shape[0] == 0


def snapshot(model):
    parameters = [
        (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()
    ]
    return parameters, [b.clone() for b in model.buffers()], [m.training for m in model.modules()]


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_an_attack_leaves_no_trace(grad_enabled):
    model, x, y = conv_net(), images(4), labels(4)
    model(x).sum().backward()
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = None
    model[3].train()
    model[3].p = 0.0
    start = (x + EPS / 2).clamp(0, 1)
    before = copy.deepcopy(snapshot(model)), x.clone(), y.clone(), start.clone()
    with torch.set_grad_enabled(grad_enabled):
        x_adv = pgd_linf(model, x, y, eps=EPS, step_size=EPS, steps=3, start=start)
    torch.testing.assert_close((snapshot(model), x, y, start), before, rtol=0, atol=0)
    for tensor in (x, start, x_adv):
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert not torch.equal(x_adv, start)


def test_observe_sees_every_iterate_and_its_logits():
    model, x, y = conv_net(), images(4), labels(4)
    start = (x + EPS * (2 * images(4, seed=2) - 1)).clamp(0, 1)
    values = {"eps": EPS, "step_size": EPS / 3, "start": start}
    seen = []
    watched = pgd_linf(model, x, y, steps=5, observe=lambda *what: seen.append(what), **values)
    assert [step for step, _, _ in seen] == list(range(5))
    assert torch.equal(seen[0][1], start)
    for step, iterate, logits in seen:
        assert torch.equal(iterate, pgd_linf(model, x, y, steps=step, **values))
        assert torch.equal(logits, model(iterate))
        assert not iterate.requires_grad
        assert not logits.requires_grad
    assert torch.equal(watched, pgd_linf(model, x, y, steps=5, **values))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_gradient_that_is_not_finite_cannot_pass_for_robustness(steps):
    net, x, y = conv_net(), images(4), labels(4)

    def model(x):  # finite logits, but the gradient for image 2 is 0 * infinity
        zeros = torch.zeros(len(x), 1)
        zeros[2] = (x[2] - x[2]).sum().sqrt()
        return net(x) + zeros

    x_adv = pgd_linf(model, x, y, eps=EPS, step_size=EPS, steps=steps)
    assert x_adv.isnan().flatten(1).any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 8}, r"eps = 8 is outside \[0, 1\].*for 8 of 255 levels write 8/255"),
        ({"step_size": 2}, "step_size = 2 .*write 2/255"),
        (
            {"eps": -0.1},
            r"eps = -0.1 is outside \[0, 1\]: pixels are in \[0, 1\]; for 8 of 255 levels write 8/255$",
        ),
        (
            {"eps": 256},
            r"eps = 256 is outside \[0, 1\]: pixels are in \[0, 1\]; for 8 of 255 levels write 8/255$",
        ),
        ({"step_size": float("nan")}, "step_size = nan"),
        ({"steps": -1}, "steps = -1: must be a whole number, at least 0$"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"x": 255 * images(2)}, r"images span \[0, 255\].*normalization belongs inside the model"),
        ({"x": images(2) - 0.01}, r"images span \[-0.01,"),
        ({"x": images(2) * torch.nan}, r"images span \[nan, nan\]"),
        ({"x": images(2)[0]}, r"images \(3, 8, 8\).*\[N, C, H, W\] float"),
        ({"x": (255 * images(2)).byte()}, "torch.uint8: .*float"),
        ({"labels": labels(3)}, r"labels \(3,\) torch.int64: one int64 class index for each of 2 images"),
        ({"labels": labels(2).int()}, "torch.int32"),
        ({"labels": torch.eye(10)[:2]}, r"labels \(2, 10\) torch.float32"),
        ({"labels": torch.tensor([3, -100])}, "labels: -100 is not a class"),
        ({"start": images(1)}, r"start \(1, 3, 8, 8\) .* must be like the images, \(2, 3, 8, 8\)"),
        ({"start": images(2).double()}, "torch.float64: must be like the images"),
        ({"start": 1 - images(2)}, "start: is 1 away from the images, outside the ball of eps = 0.1"),
        ({"start": images(2) - 0.05}, r"images span \[-0.05,"),
    ],
)
def test_wrong_arguments_are_refused(values, message):
    arguments = {"x": images(2), "labels": labels(2), "eps": 0.1, "step_size": 0.1, "steps": 1}
    with pytest.raises(InputError, match=message):
        pgd_linf(conv_net(), **(arguments | values))


IDS = torch.arange(9000)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_uniform_targets_are_every_wrong_class_alike_and_never_the_true_one(classes):
    y = IDS % classes
    drawn = targets.uniform(y, IDS, classes, seed=0)
    assert drawn.dtype == torch.int64
    assert (drawn != y).all()
    pairs = torch.zeros(classes, classes).index_put_((y, drawn), torch.ones(len(y)), accumulate=True)
    expected = len(y) / classes / (classes - 1)
    wrong = pairs[~torch.eye(classes, dtype=torch.bool)]
    degrees = classes * (classes - 2)
    chi_square = float(((wrong - expected) ** 2 / expected).sum())
    assert chi_square <= degrees + 3.3 * (2 * degrees) ** 0.5


def test_uniform_targets_depend_on_seed_id_and_draw_alone():
    y = IDS % 10
    drawn = targets.uniform(y, IDS, 10, seed=0)
    shuffled = torch.randperm(9000, generator=generator())[:100]
    assert torch.equal(targets.uniform(y[shuffled], IDS[shuffled], 10, seed=0), drawn[shuffled])
    assert torch.equal(targets.uniform(y[5:6], IDS[5:6], 10, seed=0), drawn[5:6])
    for other in (
        targets.uniform(y, IDS, 10, seed=1),
        targets.uniform(y, IDS, 10, seed=0, draw=1),
        targets.uniform(y, IDS + 2**32, 10, seed=0),
    ):
        assert 0.08 < (other == drawn).float().mean() < 0.14  # one in nine, as if drawn anew


def test_the_least_likely_target_has_the_smallest_logit_of_the_wrong_classes():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0], [-9.0, 4.0, 5.0]])
    weight = nn.Parameter(torch.ones(()))
    model = lambda x: weight * logits[: len(x)]  # noqa: E731
    chosen = targets.least_likely(model, images(3), torch.tensor([0, 2, 0]))
    assert chosen.tolist() == [1, 0, 1]
    assert weight.grad is None


def test_given_targets_are_passed_through_once_they_are_sure():
    aims = torch.tensor([1, 2, 0])
    assert targets.check_targets(aims, torch.tensor([0, 0, 1]), 3) is aims


@pytest.mark.parametrize(
    ("aims", "message"),
    [
        (torch.tensor([1, 2]), r"targets \(2,\) torch.int64: 3 int64 class indices are needed"),
        (torch.tensor([1.0, 2.0, 0.0]), "torch.float32"),
        (torch.tensor([1, 2, 3]), "target 3 of image 2 is not a class: classes are 0 to 2"),
        (torch.tensor([1, -1, 0]), "target -1 of image 1 is not a class: classes are 0 to 2"),
        (torch.tensor([1, 2, 1]), "target 1 of image 2 is its true class"),
    ],
)
def test_given_targets_that_are_none_are_refused(aims, message):
    with pytest.raises(InputError, match=message):
        targets.check_targets(aims, torch.tensor([0, 0, 1]), 3)


@pytest.mark.parametrize("classes", [0, 1])
def test_one_class_leaves_no_target(classes):
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=f"num_classes = {classes}, at least 2 needed"):
        targets.uniform(y, torch.arange(2), classes, seed=0)
    with pytest.raises(InputError, match="num_classes = 1"):
        targets.least_likely(lambda x: torch.zeros(len(x), 1), images(2), y)


def test_a_model_that_detaches_its_input_is_named():
    net = conv_net()
    with pytest.raises(InputError, match="carry no gradient"):
        pgd_linf(lambda x: net(x.detach()).detach(), images(2), labels(2), eps=EPS, step_size=EPS, steps=1)
