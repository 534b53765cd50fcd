"""Every attack gives each image the same row for any batch size, shard and number of rows in a pass."""

import dataclasses
import importlib
import sqlite3
from contextlib import closing, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_lr as rlr
from robust_lr.attacks.losses import cross_entropy
from robust_lr.attacks.stepwise import evaluate_objective
from robust_lr.evaluation.guards import GUARDS
from robust_lr.evaluation.model_under_test import equal_sizes
from robust_lr.evaluation.randomness import RandomBench
from robust_lr.protocols import APGD, DDN, FAB, FMN, PGD, PROTOCOLS, Square
from robust_lr.protocols.base import StepwiseProtocol

continuous_batching = importlib.import_module("robust_lr.evaluation.continuous_batching")
session = importlib.import_module("robust_lr.evaluation.session")

#: steps that are enough for passes of fewer rows and for cycles
LONG = 33
#: few images of the last kind survive, so that passes run empty
ATTACKS = {
    "pgd": PGD(eps=0.03, step_size=0.005, steps=LONG, criterion="worst"),
    "pgd-targeted": PGD(eps=0.08, step_size=0.01, steps=LONG, targeted=True),
    "pgd-l2": PGD(eps=1.0, step_size=0.2, steps=LONG, norm="l2", criterion="worst"),
    "mi-fgsm": PGD(eps=0.03, step_size=0.005, steps=LONG, momentum=1.0, criterion="worst"),
    "di-fgsm": PGD(eps=0.03, step_size=0.005, steps=LONG, momentum=1.0, diversity=0.5),
    "ti-fgsm": PGD(eps=0.03, step_size=0.005, steps=LONG, momentum=1.0, smoothing=5),
    "apgd": APGD(eps=0.03, steps=LONG),
    "apgd-l2": APGD(eps=0.8, norm="l2", steps=LONG),
    "apgd-targeted": APGD(eps=0.08, steps=LONG, targeted=True),
    "apgd-l1": APGD(eps=8.0, norm="l1", steps=LONG),
    "apgd-t": APGD(eps=0.03, steps=LONG, loss="dlr", targets=2),
    "apgd-t-l2": APGD(eps=0.8, norm="l2", steps=LONG, loss="dlr", targets=2),
    "apgd-t-l1": APGD(eps=8.0, norm="l1", steps=LONG, loss="dlr", targets=2),
    "fab": FAB(eps=0.03, steps=LONG, targets=0),
    "fab-untargeted-l2": FAB(eps=0.8, norm="l2", steps=LONG, targets=0),
    "fab-linf": FAB(eps=0.03, steps=LONG, targets=2),
    "fab-l2": FAB(eps=0.8, norm="l2", steps=LONG, targets=1, restarts=2),
    "fab-l1": FAB(eps=6.0, norm="l1", steps=LONG, targets=2),
    "square-linf": Square(eps=0.05, queries=2 * LONG),
    "square-l2": Square(eps=1.5, norm="l2", queries=2 * LONG),
    "square-l1": Square(eps=12.0, norm="l1", queries=2 * LONG),
    "fmn-linf": FMN(eps=0.03, steps=LONG),
    "fmn-l2": FMN(eps=0.8, norm="l2", steps=LONG),
    "fmn-l1": FMN(eps=6.0, norm="l1", steps=LONG),
    "ddn": DDN(eps=0.8, steps=LONG),
}
#: values of a protocol that take other ways through an attack's code
WAYS = ("norm", "targeted", "targets", "momentum", "diversity", "smoothing")
OPTIONS = {"compute_batch": 16, "allow": tuple(GUARDS), "check": "off", "processes": 1}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(21)


class RowByRow(nn.Linear):
    """A linear layer that rounds alike for any number of rows; matrix products of some processors do not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, None] * self.weight).sum(2) + self.bias


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 5, stride=3), nn.ReLU(), nn.Flatten(), RowByRow(384, 10))
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(1000))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for rows in (*torch.arange(1000).split(50),) * 3:
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval()


def rows_in(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM images ORDER BY id")]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def ways(protocol):
    return type(protocol), *(
        value if isinstance(value := getattr(protocol, way, 0), str) else bool(value) for way in WAYS
    )


def test_every_attack_of_the_registry_is_among_them():
    """Library attacks are in test_continuous_batching.py, averages over draws in test_randomness.py."""
    parts = [part for name in PROTOCOLS for part in rlr.protocols.get(name).attacks()]
    registered = {ways(part) for part in parts if isinstance(part, StepwiseProtocol) and part.eot == 1}
    assert registered <= {ways(attack) for attack in ATTACKS.values()}


@pytest.mark.parametrize("name", ATTACKS)
def test_rows_are_the_same_for_any_batch_size_and_shard(tmp_path, data, model, name, monkeypatch):
    found: list[tuple[int, ...]] = []

    def kept(*arguments):
        found.append(equal_sizes(*arguments))
        return found[-1]

    monkeypatch.setattr(session, "MIN_QUERIES", LONG)
    monkeypatch.setattr(session, "equal_sizes", kept)
    whole = rlr.evaluate(model, data, ATTACKS[name], out=tmp_path / "64", batch_size=64, **OPTIONS)
    rows = rows_in(tmp_path / "64")
    assert whole.batch_invariant
    assert found[0], "no pass of fewer rows has the same bits here"
    for size in (1, 7):
        rlr.evaluate(model, data, ATTACKS[name], out=tmp_path / str(size), batch_size=size, **OPTIONS)
        assert rows_in(tmp_path / str(size)) == rows
    parts = []
    for i in (1, 2, 3):
        rlr.evaluate(model, data, ATTACKS[name], out=tmp_path / f"shard{i}", shard=(i, 3), **OPTIONS)
        parts += rows_in(tmp_path / f"shard{i}")
    assert sorted(parts, key=lambda row: row["id"]) == rows
    monkeypatch.setattr(session, "equal_sizes", lambda *_: ())
    rlr.evaluate(model, data, ATTACKS[name], out=tmp_path / "padded", **OPTIONS)
    assert rows_in(tmp_path / "padded") == rows


def test_passes_of_fewer_rows_are_made_only_where_they_give_the_same_bits(data, model):
    x, y, _ = data.batch(torch.arange(16))
    with torch.no_grad():
        assert equal_sizes(model, x, y)

    class Rounding(nn.Module):
        """A model whose logits tell how many rows it was shown."""

        def forward(self, x):
            return model(x) * (1 + 2.0**-20 * len(x))

    class Slopes(nn.Module):
        """A model whose gradients do."""

        def forward(self, x):
            return model(x + (len(x) * 2.0**-20) * (x - x.detach()))

    assert equal_sizes(Rounding(), x, y) == ()
    assert equal_sizes(Slopes(), x, y) == ()
    torch.testing.assert_close(
        evaluate_objective(Slopes(), x, y, None, cross_entropy)[2],
        evaluate_objective(model, x, y, None, cross_entropy)[2],
    )


def test_survivors_take_smaller_passes(data, model):
    """What the model is shown, padding included, grows with the images that are left and not with the batch."""
    shown = []
    handle = model.register_forward_hook(lambda module, inputs, output: shown.append(len(output)))
    try:
        protocol = dataclasses.replace(ATTACKS["square-linf"], queries=500)
        rlr.evaluate(model, data.take(4), protocol, **OPTIONS)
    finally:
        handle.remove()
    assert sum(n == 4 for n in shown) > 400


def test_square_skips_queries_that_change_no_pixel(data, model, monkeypatch):
    """Their answer is known: rows are the same for fewer passes."""
    found = []
    for skips in (continuous_batching.skips_repeats, lambda *_: False):
        monkeypatch.setattr(continuous_batching, "skips_repeats", skips)
        found.append(rlr.evaluate(model, data, Square(eps=0.03, queries=500), **OPTIONS))
    few, all_ = found
    kept = [[dataclasses.replace(row, forwards=0, seconds=0.0) for row in result.rows] for result in found]
    assert kept[0] == kept[1]
    assert 0 < few.robust.count < few.clean.count
    assert few.forwards < 0.95 * all_.forwards


def test_a_random_model_is_shown_every_query(model):
    """It may answer otherwise the next time."""
    bench = RandomBench(
        model=model, attacked=model, num_classes=10, seed=0, rows=4, fixed=False, patience=1, precision=nullcontext
    )
    search = Square(eps=0.1).stepwise(0)
    assert not continuous_batching.skips_repeats(search, bench)


def test_steps_that_fill_two_passes_give_the_same_rows(data, model, monkeypatch):
    found = []
    for passes in (1, 2):
        monkeypatch.setattr(session, "passes_per_step", lambda *_, passes=passes: passes)
        result = rlr.evaluate(model, data, ATTACKS["fab-linf"], **OPTIONS | {"compute_batch": 8})
        found.append([dataclasses.replace(row, seconds=0.0) for row in result.rows])
    assert found[0] == found[1]


def test_steps_fill_more_passes_only_where_every_process_has_enough_images():
    small, large = (1, 28, 28), (3, 224, 224)
    assert session.passes_per_step(500, 256, 64, 2, small) == session.passes_per_step(5000, 10_000, 64, 2, small) == 2
    assert session.passes_per_step(500, 255, 64, 2, small) == session.passes_per_step(500, 1, 64, 0, small) == 1
    assert session.passes_per_step(500, 10_000, 64, 2, large) == 1
    assert session.passes_per_step(499, 10_000, 64, 2, small) == 1
