"""Attacks and data of the user's own are taken as they are, verified, and counted as ours."""

import dataclasses

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import PGD
from robust_lr.protocols.custom import Custom
from robust_lr.protocols.files import from_values
from robust_lr.utils.errors import InputError, RunError

EPS = 8 / 255
ONE_STEP = PGD(eps=EPS, step_size=EPS, steps=1, start="clean", criterion="worst")
QUICK = {"compute_batch": 16, "allow": tuple(GUARDS), "check": "off"}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(30)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def fgsm(model, x, labels, targets):
    x = x.requires_grad_()
    loss = nn.functional.cross_entropy(model(x), labels if targets is None else targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return (x + (1 if targets is None else -1) * EPS * gradient.sign()).clamp(0, 1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_an_attack_of_the_users_own_is_judged_and_counted_as_ours(data, model, targeted, together):
    mine = Custom(function=fgsm, eps=EPS, targeted=targeted, together=together)
    found = rlr.evaluate(model, data, mine, **QUICK)
    ours = rlr.evaluate(model, data, dataclasses.replace(ONE_STEP, targeted=targeted), **QUICK)
    assert found.success == ours.success
    assert [row.adversarial for row in found.rows] == [row.adversarial for row in ours.rows]
    for name in ("loss", "clean_target_loss", "target_loss"):
        assert [getattr(row, name) for row in found.rows] == pytest.approx([getattr(row, name) for row in ours.rows])
    assert all((row.target_loss is not None) is targeted for row in found.rows)
    assert found.backwards == found.attacked == ours.backwards
    assert found.batch_invariant is not together
    assert from_values(found.protocol) == mine


def test_a_callable_needs_its_ball_and_merges_as_ours(tmp_path, data, model):
    whole = rlr.evaluate(model, data, fgsm, eps=EPS, **QUICK)
    for i in (1, 2):
        rlr.evaluate(model, data, fgsm, eps="8/255", shard=(i, 2), out=tmp_path / str(i), **QUICK)
    assert rlr.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all").robust == whole.robust
    with pytest.raises(InputError, match="needs the radius of its ball"):
        rlr.evaluate(model, data, fgsm, **QUICK)
    with pytest.raises(InputError, match="`eps` is for an attack that is a callable"):
        rlr.evaluate(model, data, ONE_STEP, eps=EPS, **QUICK)
    with pytest.raises(InputError, match="give the function"):
        rlr.evaluate(model, data, from_values(whole.protocol), **QUICK)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda m, x, y, t: x * float("nan"), "pixels that are not finite for image 0"),
        (lambda m, x, y, t: x[:, :, :4], r"returned \(1, 1, 4, 28\) torch.float32 for image 0"),
        (lambda m, x, y, t: x - 0.2, "left its bounds on image 0: distance 0.2, eps 0.03"),
        (lambda m, x, y, t: x + EPS + 0 * y.view(-1, 1, 1, 1), r"image 0: pixels span \[1.03\d+, 1.03\d+\]"),
        (lambda m, x, y, t: None, "returned NoneType"),
        (lambda m, x, y, t: 1 / 0, "failed on image 0: ZeroDivisionError"),
    ],
)
def test_what_is_no_adversarial_image_stops_the_run_in_one_line(tmp_path, model, attack, words):
    white = rlr.data.from_arrays(torch.ones(2, 28, 28), model(torch.ones(2, 1, 28, 28)).argmax(1), num_classes=10)
    with pytest.raises(RunError, match=words) as error:
        rlr.evaluate(model, white, attack, eps=EPS, out=tmp_path, **QUICK)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    rlr.evaluate(model, white, lambda m, x, y, t: x, eps=EPS, out=tmp_path, **QUICK)  # a mended attack may follow


def test_images_may_come_as_tensors_data_sets_loaders_and_rows(data, model):
    x, y, ids = data.batch(torch.arange(len(data)))
    plain = torch.utils.data.TensorDataset(x, y)

    class Rows:
        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            return {"img": x[index, 0].mul(255).round().byte().numpy(), "label": int(y[index])}

    expected = rlr.evaluate(model, data, ONE_STEP, **QUICK)
    half = list(range(0, 30, 2))
    forms = {
        "arrays": ((x, y), data),
        "with ids": ((x, y, ids), data),
        "data set": (plain, data),
        "rows": (Rows(), data),
        "loader": (torch.utils.data.DataLoader(plain, batch_size=7, shuffle=True), data),
        "batches": (torch.utils.data.DataLoader(plain, batch_size=7, collate_fn=lambda items: tuple(
            torch.stack([torch.as_tensor(item[i]) for item in items]) for i in (0, 1))), data),
        "subset": (torch.utils.data.Subset(plain, half), data.subset(half)),
        "subset of ours": (torch.utils.data.Subset(data, half), data.subset(half)),
    }  # fmt: skip
    for name, (given, ours) in forms.items():
        found = rlr.evaluate(model, given, ONE_STEP, **QUICK)
        wanted = expected if ours is data else rlr.evaluate(model, ours, ONE_STEP, **QUICK)
        assert [(r.id, r.adversarial, r.margin) for r in found.rows] == [
            (r.id, r.adversarial, r.margin) for r in wanted.rows
        ], name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "data of type int"),
        ({"image": 1}, "data of type dict"),
        ([(torch.rand(1, 28, 28) * 3, 0)], "float images span"),
        ([(torch.rand(1, 28, 28), "shoe")], "label 'shoe'"),
        ([(torch.rand(1, 28, 28), 0), (torch.rand(1, 27, 28), 0)], "resize the images"),
        ([torch.rand(1, 28, 28)], r"must be \(image, label\[, id\]\)"),
        ([{"picture": 1, "label": 2}], "one must be named image or img"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_line(model, given, words):
    with pytest.raises(InputError, match=words):
        rlr.evaluate(model, given, ONE_STEP, **QUICK)


def test_random_transforms_are_found(model):
    class Random:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(1, 28, 28), index

    with pytest.raises(InputError, match="pixels of item 0 changed since they were first read"):
        rlr.evaluate(model, Random(), ONE_STEP, **QUICK)


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (Output, ".logits of Output"),
        (lambda logits: {"logits": logits}, ".logits of dict"),
        (lambda logits: (logits, None), "first of 2 values"),
        (lambda logits: logits.double(), "logits"),
    ],
)
def test_logits_inside_something_else_are_taken_and_the_result_says_so(data, model, wrap, place):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return wrap(self.net(x))

    found = rlr.evaluate(Wrapped(), data, ONE_STEP, **QUICK)
    assert found.model_output == found.to_dict()["model_output"] == place
    assert found.robust == rlr.evaluate(model, data, ONE_STEP, **QUICK).robust


def test_logits_that_are_none_are_refused(data):
    class Empty(nn.Module):
        def forward(self, x):
            return Output(None)

    with pytest.raises(InputError, match="returns Output whose logits are None"):
        rlr.evaluate(Empty(), data, ONE_STEP, **QUICK)
