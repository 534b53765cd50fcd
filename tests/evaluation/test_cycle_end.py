"""Images whose iterates come back end early, and every row is what all steps would have given."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation import cycle_end
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import APGD, PGD, Sweep

LAST = PGD(eps=8 / 255, step_size=2 / 255, steps=60, record=(0, 3, 17, 30, 31, 32, 33, 59, 60))
PROTOCOLS = {
    "last": LAST,
    "targeted": dataclasses.replace(LAST, targeted=True, restarts=2),
    "worst": dataclasses.replace(LAST, criterion="worst"),
    "targeted worst": dataclasses.replace(LAST, criterion="worst", targeted=True, eps=24 / 255),
    "momentum": dataclasses.replace(LAST, momentum=0.25),
    "clean start": dataclasses.replace(LAST, start="clean", loss="margin"),
}
#: what the early end may change
WORK = {"steps_skipped": 0, "forwards": 0, "backwards": 0, "seconds": 0.0}
QUICK = {"compute_batch": 16, "allow": tuple(GUARDS)}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(32)


@pytest.fixture(scope="module")
def trained():
    """A linear classifier with one hidden layer, fitted a little: robust on some images, not on others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(1000))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003, weight_decay=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def verdicts(result):
    return [dataclasses.replace(row, **WORK) for row in result.rows]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_rows_and_curves_are_the_same_to_the_bit_for_fewer_passes(data, model, name):
    early = rlr.evaluate(model, data, PROTOCOLS[name], **QUICK)
    full = rlr.evaluate(model, data, PROTOCOLS[name], **QUICK, end_at_cycles=False)
    assert verdicts(early) == verdicts(full)
    assert early.curve == full.curve
    assert (early.cycle_detection, full.cycle_detection) == ("on", "off: not wanted")
    assert full.ended_at_cycles == 0
    assert early.ended_at_cycles == sum(row.steps_skipped > 0 for row in early.rows)
    saved = sum(row.steps_skipped for row in early.rows)
    assert early.backwards + saved == full.backwards
    if name != "momentum":
        assert early.ended_at_cycles > 4
        assert early.backwards < 0.8 * full.backwards


def test_images_that_stand_still_are_counted_as_without(data, model):
    """Where the gradient is zero the iterate repeats at once, and the sign of a broken evaluation must stay."""

    class Flat(nn.Module):
        def forward(self, x):
            logits = model(x)
            return logits + (logits.detach() - logits) * (x.mean((1, 2, 3)) > 0.25)[:, None]

    flat = Flat()
    early, full = (rlr.evaluate(flat, data, LAST, **QUICK, end_at_cycles=end) for end in (True, False))
    assert verdicts(early) == verdicts(full)
    assert any(row.zero_gradients == LAST.steps and row.steps_skipped > 40 for row in early.rows)
    assert early.validity == full.validity


def test_a_success_that_the_model_never_confirms_is_counted_as_without(data, model, monkeypatch):
    from robust_lr.evaluation import session

    class Pessimist(nn.Module):
        def forward(self, x):
            logits = model(x)
            rank = logits.argsort(1, descending=True)
            return logits.scatter(1, rank[:, :1], logits.gather(1, rank[:, :1]) - 1.0)

    monkeypatch.setattr(session, "make_attackable", lambda *_: Pessimist().eval())
    protocol = dataclasses.replace(LAST, criterion="worst")
    early, full = (rlr.evaluate(model, data, protocol, **QUICK, end_at_cycles=end) for end in (True, False))
    assert verdicts(early) == verdicts(full)
    assert any(row.unconfirmed > 5 and row.steps_skipped for row in early.rows)


def test_it_works_in_sweeps_and_shards_and_after_a_resume(tmp_path, data, model):
    parts = tuple(
        dataclasses.replace(LAST, eps=level / 255, name=f"eps-{level}", criterion="worst", record=())
        for level in (1, 8)
    )
    sweep = Sweep(axis="eps", parts=parts, name="two")
    early, full = (rlr.sweep(model, data, sweep, **QUICK, end_at_cycles=end) for end in (True, False))
    assert early.points == full.points
    assert early.results[0].ended_at_cycles > 0
    whole = rlr.evaluate(model, data, LAST, **QUICK)
    for i in (1, 2):
        rlr.evaluate(model, data, LAST, **QUICK, shard=(i, 2), out=tmp_path / str(i))
    joined = rlr.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    assert joined.ended_at_cycles == whole.ended_at_cycles > 0
    assert joined.cycle_detection == "on"
    timeless = [[dataclasses.replace(row, seconds=0.0) for row in result.rows] for result in (joined, whole)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compute_batch": 0}, "off: without a fixed compute batch"),
        ({}, "off: fewer than 32 steps"),
        ({"protocol": APGD(eps=8 / 255, steps=3)}, "off: no attack with fixed steps"),
    ],
)
def test_it_stays_off_where_cycles_cannot_be_told_and_says_why(data, model, options, reason):
    arguments = {**QUICK, "protocol": dataclasses.replace(LAST, steps=3, record=()), **options}
    result = rlr.evaluate(model, data.take(8), **arguments)
    assert result.cycle_detection.startswith(reason)
    assert result.to_dict()["ended_at_cycles"] == 0


def test_it_stays_off_for_models_that_answer_otherwise_in_another_pass(data, model):
    class Noisy(nn.Module):
        def forward(self, x):
            return model(x) + 1e-6 * torch.randn(len(x), 10)

    class Beside(nn.Module):
        def forward(self, x):
            return model(x) + 1e-3 * x.mean()

    protocol = dataclasses.replace(LAST, steps=cycle_end.MIN_STEPS, record=())
    for made in (Noisy(), Beside()):
        result = rlr.evaluate(made, data, protocol, **QUICK)
        assert result.cycle_detection == "off: the model gives an image other bits in another pass"


def test_on_a_gpu_it_stays_off():
    device = torch.device("cuda")
    assert cycle_end.decide_cycle_detection([LAST], True, True, device, lambda: True).startswith(
        "off: arithmetic on cuda may differ"
    )


def test_accuracy_under_attack_in_training_ends_early_with_the_same_figure(data, model, monkeypatch):
    from robust_lr.training.validation import accuracy

    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    attack = dataclasses.replace(LAST, steps=400, record=())
    early = accuracy(model, data, attack)
    count = len(passes)
    perturb = PGD.perturb
    monkeypatch.setattr(PGD, "perturb", lambda *a, **o: perturb(*a, **{**o, "end_at_cycles": False}))
    assert accuracy(model, data, attack) == early
    assert count < 0.5 * (len(passes) - count)
