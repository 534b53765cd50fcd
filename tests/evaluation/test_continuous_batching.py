"""Streams of images: the same rows whatever the batch, decided images leave, cascades and libraries."""

import copy
import dataclasses
import importlib
import sqlite3
import time
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation import continuous_batching
from robust_lr.evaluation import session as prepared
from robust_lr.evaluation.guards import GUARDS
from robust_lr.evaluation.model_under_test import Bench
from robust_lr.protocols import APGD, Cascade, Square
from robust_lr.protocols.files import from_table as protocol_of
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.torchattacks import Library
from robust_lr.utils import rng
from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.statistics import Proportion

EPS = 8 / 255
WORST = PGD(eps=EPS, step_size=2 / 255, steps=8, criterion="worst")
AIMED = dataclasses.replace(WORST, targeted=True, eps=24 / 255, step_size=6 / 255)
#: compute batches of 16 make tests quick
QUICK = {"compute_batch": 16, "allow": tuple(GUARDS)}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(100)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip
    x, y, ids = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(2000))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(90):
        rows = rng.words(0, rng.ORDER, ids, 1, draw=step)[:, 0].argsort()[:64]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def table(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        cursor = connection.execute("SELECT * FROM images ORDER BY id")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# the same rows, whatever is beside them

CASCADE = Cascade(
    parts=(
        APGD(name="apgd-ce", eps=EPS, steps=6),
        APGD(name="apgd-t", eps=EPS, steps=6, loss="dlr", targets=3),
        Square(eps=EPS, queries=20),
    )
)
KEYED = {
    "last": dataclasses.replace(WORST, criterion="last", restarts=2, record=(0, 3, 8)),
    "worst": dataclasses.replace(WORST, restarts=2),
    "aimed": AIMED,
    "l2": PGD(eps=1.0, step_size=0.3, steps=6, norm="l2", loss="dlr", momentum=0.5, criterion="worst"),
    "apgd": APGD(eps=0.8, norm="l2", steps=12),
    "cascade": CASCADE,
    "library": Library(attack="Square", eps=EPS, options={"eps": EPS, "n_queries": 4}),
}


@pytest.mark.parametrize("name", KEYED)
def test_rows_are_the_same_for_any_batch_size_order_and_shard(tmp_path, data, model, name):
    protocol = KEYED[name]
    data = data.take(24 if name == "library" else 90)
    whole = rlr.evaluate(model, data, protocol, out=tmp_path / "64", **QUICK)
    rows = table(tmp_path / "64")
    assert whole.batch_invariant
    assert len({row["adversarial"] == row["label"] for row in rows}) == 2
    for size in (1, 7):
        rlr.evaluate(model, data, protocol, out=tmp_path / str(size), batch_size=size, **QUICK)
        assert table(tmp_path / str(size)) == rows
    mixed = data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(0)))
    rlr.evaluate(model, mixed, protocol, out=tmp_path / "mixed", **QUICK)
    assert table(tmp_path / "mixed") == rows
    parts = []
    for i in (1, 2, 3):
        rlr.evaluate(model, data, protocol, out=tmp_path / f"shard{i}", shard=(i, 3), **QUICK)
        parts += table(tmp_path / f"shard{i}")
    assert sorted(parts, key=lambda row: row["id"]) == rows


@pytest.mark.parametrize("restarts", [1, 3])  # between restarts images wait until a pass of verdicts is full
def test_the_last_passes_are_fuller(data, model, monkeypatch, restarts):
    """Images with more steps left take the places of others, without a change of any row."""
    protocol = dataclasses.replace(WORST, steps=20, restarts=restarts)
    query, found, holes = Bench.evaluate_query, [], []
    for turns in (continuous_batching.TAKE_TURNS, 10_000):
        passes = []

        def counted(bench, part, queries, *rest, passes=passes):
            passes.append(len(queries))
            return query(bench, part, queries, *rest)

        monkeypatch.setattr(continuous_batching, "TAKE_TURNS", turns)
        monkeypatch.setattr(Bench, "evaluate_query", counted)
        result = rlr.evaluate(model, data, protocol, processes=1, check="off", **QUICK)
        found.append([dataclasses.replace(row, seconds=0.0) for row in result.rows])
        holes.append(sum(16 - n for n in passes))
        assert sum(passes) == result.backwards
    assert found[0] == found[1]
    assert holes[0] < holes[1]
    assert restarts > 1 or holes[0] < 3 * 16


def test_attacks_on_whole_batches_say_that_they_depend_on_them(data, model):
    options = {"eps": EPS, "steps": 2, "multi_targeted": True, "n_classes": 3}
    together = Library(attack="FAB", eps=EPS, options=options, together=True)
    assert not rlr.evaluate(model, data.take(10), together, **QUICK).batch_invariant
    assert not rlr.evaluate(model, data.take(10), Cascade(parts=(together,)), **QUICK).batch_invariant


@pytest.mark.parametrize("rows", [16, 64])
def test_a_row_of_a_pass_does_not_depend_on_its_place_or_neighbors(data, rows):
    model = rlr.build_model("lrnet26", width=1 / 16, stem="small", in_channels=1, num_classes=10).eval()
    x = data.batch(torch.arange(rows))[0]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    strangers = torch.cat([x[:1], torch.rand(rows - 1, 1, 28, 28)])

    def look(x):
        x = x.clone().requires_grad_()
        logits = model(x)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]

    logits, gradient = look(x)
    moved_logits, moved_gradient = look(x[order])
    assert torch.equal(moved_logits, logits[order])
    assert torch.equal(moved_gradient, gradient[order])
    other_logits, other_gradient = look(strangers)
    assert torch.equal(other_logits[0], logits[0])
    assert torch.equal(other_gradient[0], gradient[0])


# the cost of a step


def test_steps_copy_nothing_from_the_host(data, model, monkeypatch):
    """Each copy would make a GPU wait. Attacks of more steps make no more tensors out of numbers."""
    make, made = torch.tensor, []
    monkeypatch.setattr(torch, "tensor", lambda *values, **options: made.append(values) or make(*values, **options))

    def copies(protocol):
        made.clear()
        rlr.evaluate(model, data.take(16), protocol, **QUICK)
        return len(made)

    curved = dataclasses.replace(WORST, criterion="last")
    for few, more in (
        [dataclasses.replace(curved, steps=steps, record=(0, steps)) for steps in (4, 12)],
        [APGD(eps=1e-6, steps=steps) for steps in (4, 12)],
        [Square(eps=1e-6, queries=queries) for queries in (4, 12)],
    ):
        copies(few)  # what is kept is made once
        copies(more)
        assert copies(few) == copies(more)


@pytest.mark.parametrize("protocol", ["last", "worst", "cascade", "library"])
def test_the_seconds_of_all_images_are_those_of_the_run(data, model, monkeypatch, protocol):
    """By a clock that goes on where time is spent: in the model, and where the host waits for the device."""
    now = [0.0]
    cpu = torch.Tensor.cpu

    def pass_on(seconds):
        now[0] += seconds

    def waits(tensor):
        pass_on(1.0)
        return cpu(tensor)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "cpu", waits)
    room = importlib.import_module("robust_lr.evaluation.harness")  # the package's own name is the function
    attack_all, spent = room.attack_all, []

    def clocked(batches, *arguments):
        loaded = list(batches)  # loading does not count
        began = now[0]
        groups = list(attack_all(loaded, *arguments))
        spent.append(now[0] - began)
        return iter(groups)

    monkeypatch.setattr(room, "attack_all", clocked)
    model.register_forward_hook(lambda *_: pass_on(10.0))
    result = rlr.evaluate(model, data, KEYED[protocol], **QUICK)
    assert result.seconds == pytest.approx(spent[0])


# decided images leave


@pytest.mark.parametrize("protocol", [WORST, dataclasses.replace(WORST, restarts=3), AIMED])
def test_leaving_early_changes_no_verdict_and_saves_passes(tmp_path, data, model, protocol):
    early = rlr.evaluate(model, data, protocol, out=tmp_path / "early", **QUICK)
    full = rlr.evaluate(model, data, dataclasses.replace(protocol, criterion="last"), out=tmp_path / "full", **QUICK)
    assert early.robust == early.robust_worst_seen == full.robust_worst_seen
    assert early.robust_last is None
    assert full.robust_last == full.robust
    assert 0 < early.robust.count < early.clean.count
    for row, other in zip(table(tmp_path / "early"), table(tmp_path / "full"), strict=True):
        assert row["robust_worst_seen"] == other["robust_worst_seen"]
        at_aim_when_clean = row["clean"] == row["target"] if protocol.targeted else row["clean"] != row["label"]
        if at_aim_when_clean:
            assert (row["forwards"], row["backwards"]) == (1, 0)
            continue
        assert row["success"] == (other["first_success"] is not None) == (row["first_success"] is not None)
        if row["success"]:  # a later restart, which the image did not stay for, may be quicker
            assert other["first_success"] <= row["first_success"]
            assert protocol.restarts > 1 or other["first_success"] == row["first_success"]
        if protocol.restarts == 1:
            steps = protocol.steps if row["first_success"] is None else min(protocol.steps, row["first_success"] + 1)
            assert row["backwards"] == steps
            assert row["forwards"] == 1 + steps + 1
    assert full.backwards == len(data) * protocol.steps * protocol.restarts
    assert full.attacked == len(data)
    assert early.backwards < 0.8 * full.backwards
    assert early.attacked == early.success.n < len(data)
    assert early.success.count >= full.success.count


def test_places_are_filled_again_so_that_passes_stay_full(data, model):
    counted = []

    class Spy(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                counted.append(len(x))
            return model(x)

    model.eval()
    result = rlr.evaluate(Spy(), data, WORST, **QUICK)
    assert set(counted) == {16}
    assert sum(counted) <= 1.25 * result.backwards + 16 * WORST.steps  # no more padding than at the end


def test_a_success_that_the_model_does_not_confirm_goes_on(data, model, monkeypatch):
    """Gradients come from a copy that is too pessimistic: what it calls a success is mostly none."""

    class Pessimist(nn.Module):
        def forward(self, x):
            logits = model(x)
            rank = logits.argsort(1, descending=True)
            return logits.scatter(1, rank[:, :1], logits.gather(1, rank[:, :1]) - 1.0)

    honest = rlr.evaluate(model, data, WORST, **QUICK)
    monkeypatch.setattr(prepared, "make_attackable", lambda *_: Pessimist().eval())
    doubted = rlr.evaluate(model, data, WORST, **QUICK)
    assert abs(doubted.robust.count - honest.robust.count) <= 3
    assert doubted.forwards > honest.forwards


def test_what_was_wrong_before_an_unconfirmed_success_stays_wrong(tmp_path, data, model, monkeypatch):
    class Liar(nn.Module):
        """Every image is of class 0, and there is nowhere to go."""

        def forward(self, x):
            return F.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) + 0 * x.flatten(1)[:, :10]

    monkeypatch.setattr(prepared, "make_attackable", lambda *_: Liar())
    rlr.evaluate(model, data, dataclasses.replace(AIMED, start="clean"), out=tmp_path, **QUICK)
    wrong = [row for row in table(tmp_path) if row["clean"] != row["label"]]
    assert any(row["target"] == 0 for row in wrong)
    assert {row["first_wrong"] for row in wrong} == {0}


def test_with_restarts_the_worst_seen_is_never_above_the_last_at_any_step(data, model):
    many = dataclasses.replace(AIMED, criterion="last", eps=16 / 255, restarts=3, record=tuple(range(9)))
    curve = rlr.evaluate(model, data, many, **QUICK).curve
    for step, shares in curve:
        alone = rlr.evaluate(model, data, dataclasses.replace(many, steps=step, record=()), **QUICK)
        assert shares["robust_accuracy_worst_seen"] == alone.robust_worst_seen
        assert shares["robust_accuracy_worst_seen"].count <= shares["robust_accuracy_last"].count


def test_passes_that_do_not_fit_say_what_helps(tmp_path, data, model):
    class Full(nn.Module):
        left = 20

        def forward(self, x):
            self.left -= 1
            if not self.left:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
            return model(x)

    with pytest.raises(RunError, match=r"passes of 16 images do not fit: CUDA out of memory\..*; rows written before"):
        rlr.evaluate(Full(), data, WORST, out=tmp_path, **QUICK)
    assert 0 < len(table(tmp_path)) < len(data)


def test_images_wrong_when_clean_are_not_attacked_but_counted(data, model):
    result = rlr.evaluate(model, data, WORST, **QUICK)
    assert result.attacked == result.clean.count < len(data)
    assert result.success == Proportion(result.clean.count - result.robust.count, result.clean.count)
    assert result.n == result.robust.n == len(data)


# proofs


@pytest.mark.parametrize(
    "make",
    [
        lambda eps: dataclasses.replace(WORST, eps=eps, step_size=eps / 4, steps=16),
        lambda eps: PGD(eps=28 * eps, step_size=7 * eps, steps=16, norm="l2", criterion="worst"),
        lambda eps: APGD(eps=eps, steps=16),
        lambda eps: APGD(eps=28 * eps, norm="l2", steps=16, loss="dlr", targets=2),
        lambda eps: Square(eps=eps, queries=300),
        lambda eps: Library(attack="APGD", eps=eps, options={"eps": eps, "steps": 10}),
    ],
    ids=["pgd", "pgd-l2", "apgd", "apgd-t-l2", "square", "library"],
)
def test_eps_0_gives_the_clean_accuracy_and_eps_1_breaks_everything(data, model, make):
    data = data.take(30)
    nothing, everything = (rlr.evaluate(model, data, make(eps), **QUICK) for eps in (0.0, 1.0))
    assert nothing.robust == nothing.clean
    assert nothing.max_distance < 1e-6
    assert everything.clean == nothing.clean
    assert everything.robust.count == 0


def test_restarts_steps_and_targets_never_raise_worst_seen_accuracy(data, model):
    def robust(protocol):
        return rlr.evaluate(model, data, protocol, **QUICK).robust_worst_seen.count

    by_steps = [robust(dataclasses.replace(WORST, steps=n)) for n in (0, 1, 2, 4, 8, 16)]
    by_restarts = [robust(dataclasses.replace(WORST, eps=24 / 255, steps=1, restarts=n)) for n in (1, 2, 4, 8)]
    by_targets = [robust(APGD(eps=EPS, steps=3, loss="dlr", targets=n)) for n in (1, 2, 4, 9)]
    by_queries = [robust(Square(eps=EPS, queries=n)) for n in (1, 10, 100)]
    for counts in (by_steps, by_restarts, by_targets, by_queries):
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1], counts


# cascades and libraries


def test_a_cascade_attacks_survivors_only_and_says_what_broke_them(tmp_path, data, model):
    result = rlr.evaluate(model, data, CASCADE, out=tmp_path, **QUICK)
    first = rlr.evaluate(model, data, CASCADE.parts[0], **QUICK)
    assert result.broken_by["apgd-ce"] == first.success.count
    assert sum(result.broken_by.values()) == result.success.count == result.clean.count - result.robust.count
    assert result.robust.count <= first.robust.count
    for row in table(tmp_path):
        assert (row["broken_by"] is not None) == (row["success"] == 1) == (row["adversarial"] != row["clean"])
        if row["broken_by"] == "apgd-ce":
            assert row["backwards"] <= 6
    assert result.protocol["parts"][1]["targets"] == 3


def test_a_cascade_keeps_to_the_first_ids(data, model):
    mixed = data.subset(torch.randperm(100, generator=torch.Generator().manual_seed(0)))
    result = rlr.evaluate(model, mixed, dataclasses.replace(CASCADE, first=10), **QUICK)
    assert result.n == 10
    assert result.clean == rlr.evaluate(model, data.take(10), "none", **QUICK).clean


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "at least one part"),
        ((Square(eps=0.1), Square(eps=0.1)), "a name of its own"),
        ((Square(eps=0.1), APGD(eps=0.2)), "eps and norm must be those of the first part"),
        ((dataclasses.replace(WORST, criterion="last"),), "criterion = 'worst'"),
        ((AIMED,), "untargeted attacks"),
    ],
)
def test_cascades_that_make_no_sense_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        Cascade(parts=parts)


def test_a_cascade_moves_to_another_ball_as_a_whole():
    standard = rlr.protocols.get("autoattack-standard").at(4 / 255)
    assert {part.eps for part in standard.parts} == {4 / 255}
    assert protocol_of({"protocol": "autoattack-standard", "eps": "4/255"}).parts == standard.parts


@pytest.mark.parametrize(("name", "norm"), [("CW", "l2"), ("DeepFool", "l2"), ("MIFGSM", "linf")])
def test_attacks_of_torchattacks_count_where_they_succeed_within_eps(tmp_path, data, model, name, norm):
    eps = {"l2": 1.0, "linf": EPS}[norm]
    options = {"steps": {"CW": 5, "DeepFool": 20}[name]} if norm == "l2" else {"eps": eps, "steps": 5}
    protocol = Library(attack=name, eps=eps, norm=norm, options=options)
    result = rlr.evaluate(model, data.take(30), protocol, out=tmp_path, **QUICK)
    assert result.robust.count < result.clean.count
    if norm == "l2":  # these look for the smallest distance, and know no eps
        tight = rlr.evaluate(model, data.take(30), dataclasses.replace(protocol, eps=eps / 8), **QUICK)
        assert tight.robust.count > result.robust.count
    assert result.max_distance <= eps + 1e-5
    assert result.forwards > result.attacked
    assert result.backwards > 0
    assert all(row["distance"] > 0 for row in table(tmp_path) if row["success"])


def test_a_library_attack_that_fails_stops_the_run_and_counts_as_nothing(data, model, monkeypatch):
    import torchattacks

    protocol = Library(attack="FGSM", eps=EPS, options={"eps": EPS})
    cases = {
        "left the ball": lambda self, x, y: (x + 0.5).clamp(0, 1),
        "finite and in": lambda self, x, y: x * torch.nan,
        "FGSM failed on image .*: oh": lambda self, x, y: (_ for _ in ()).throw(ValueError("oh")),
    }
    for message, forward in cases.items():
        monkeypatch.setattr(torchattacks.FGSM, "forward", forward)
        with pytest.raises(RunError, match=message):
            rlr.evaluate(model, data.take(10), protocol, **QUICK)


def test_a_library_attack_cannot_break_the_caller_s_generator(data, model):
    state = torch.get_rng_state()
    rlr.evaluate(model, data.take(3), KEYED["library"], **QUICK)
    assert torch.equal(torch.get_rng_state(), state)


def test_options_that_a_class_does_not_have_are_named(data, model):
    with pytest.raises(InputError, match="stepz"):
        rlr.evaluate(model, data.take(3), Library(attack="PGD", eps=EPS, options={"stepz": 1}), **QUICK)


@pytest.mark.parametrize(("rows", "shift"), [(4, 0.0), (4, 1e-3)])
def test_batch_invariance_is_claimed_only_where_places_of_a_batch_are_equal(rows, shift):
    """The shift stands for a library that sums the last rows of a batch in another order."""

    class Placed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight.T + shift * (torch.arange(len(x)) == len(x) - 1)[:, None]

    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = rlr.data.from_arrays(images, torch.arange(12) % 4, num_classes=4)
    attack = rlr.protocols.PGD(eps=0.1, step_size=0.05, steps=2)
    result = rlr.evaluate(Placed(), data, attack, compute_batch=rows, check="off", allow=tuple(GUARDS))
    assert result.batch_invariant == (shift == 0)
