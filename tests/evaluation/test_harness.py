import copy
import dataclasses
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
from robust_lr.models.checkpoint import weights_hash
from robust_lr.protocols.pgd import PGD
from robust_lr.utils import rng
from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.statistics import Proportion, wilson

WEAK = PGD(eps=4 / 255, step_size=2 / 255, steps=4)
AIMED = dataclasses.replace(WEAK, eps=16 / 255, step_size=6 / 255, targeted=True)


#: for models made to show one thing, and where every pass is counted: guards make a few of their own
UNGUARDED = {"allow": tuple(GUARDS)}


def small_cnn():
    """Somebody else's model: ours only in that it takes pixels. Its mode matters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def small_resnet():
    return rlr.build_model("resnet18", width=1 / 16, stem="small", in_channels=1, num_classes=10)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test")


@pytest.fixture(scope="module")
def trained():
    """Both networks after a short training on real images, in train mode."""
    x, y, ids = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(2000))
    models = {}
    for make in (small_cnn, small_resnet):
        torch.manual_seed(0)
        model = models[make] = make().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(90 if make is small_cnn else 30):
            rows = rng.words(0, rng.ORDER, ids, 1, draw=step)[:, 0].argsort()[:64]
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return models


@pytest.fixture
def cnn(trained):
    return copy.deepcopy(trained[small_cnn])


@pytest.fixture
def resnet(trained):
    return copy.deepcopy(trained[small_resnet])


def table(folder):
    """The ledger's rows by id, without the seconds."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        cursor = connection.execute("SELECT * FROM images ORDER BY id")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return {row["id"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}


def timeless(result):
    return dataclasses.replace(result, seconds=0.0)


class Interrupt(Exception):
    pass


def interrupt_at(done):
    def progress(now, total):
        if now >= done:
            raise Interrupt

    return progress


# what is counted


@pytest.mark.parametrize("protocol", [WEAK, AIMED])
def test_figures_agree_with_a_plain_loop(data, cnn, protocol):
    data, eps = data.take(640), protocol.eps  # whole batches of 64: the same arithmetic
    result = rlr.evaluate(cnn, data, protocol, seed=5)
    cnn.eval()
    counts = dict.fromkeys(("clean", "robust", "seen", "success", "open"), 0)
    for x, y, ids in (data.batch(rows) for rows in torch.arange(640).split(64)):
        drawn = rng.integers(5, rng.TARGET, ids, 9)
        goal = drawn + (drawn >= y) if protocol.targeted else y
        delta = eps * (2 * rng.uniform(5, rng.START, ids, x.shape[1:]) - 1)
        x_adv = (x + delta).clamp(0, 1)
        clean = cnn(x).argmax(1)
        right_so_far = clean == y
        for _ in range(protocol.steps):
            x_adv.requires_grad_()
            logits = cnn(x_adv)
            right_so_far &= logits.argmax(1) == y
            F.cross_entropy(logits, goal).backward()
            step = protocol.step_size * x_adv.grad.sign()
            x_adv = (x + (x_adv.detach() + (-step if protocol.targeted else step) - x).clamp(-eps, eps)).clamp(0, 1)
        last = cnn(x_adv).argmax(1)
        among = clean != goal if protocol.targeted else clean == y
        counts["clean"] += int((clean == y).sum())
        counts["robust"] += int((last == y).sum())
        counts["seen"] += int((right_so_far & (last == y)).sum())
        counts["success"] += int((among & (last == goal if protocol.targeted else last != y)).sum())
        counts["open"] += int(among.sum())
    assert 400 < counts["clean"] < 640
    assert 50 < counts["robust"] < counts["clean"] - 50
    assert (result.clean.count, result.robust.count) == (counts["clean"], counts["robust"])
    assert result.robust_worst_seen.count == counts["seen"]
    assert (result.success.count, result.success.n) == (counts["success"], counts["open"])
    assert {result.n, result.clean.n, result.robust.n, result.robust_worst_seen.n} == {640}


def test_a_folded_network_gives_the_figures_of_the_network_itself(data, resnet):
    class Wrapped(nn.Module):  # no ResNet of ours to the harness: attacked as it is
        def __init__(self):
            super().__init__()
            self.net = resnet

        def forward(self, x):
            return self.net(x)

    data = data.take(256)
    folded, plain = rlr.evaluate(resnet, data, WEAK), rlr.evaluate(Wrapped(), data, WEAK)
    assert folded.clean == plain.clean
    assert 50 < plain.robust.count < plain.clean.count - 10
    assert abs(folded.robust.count - plain.robust.count) <= 2  # logits differ by rounding


class Band(nn.Module):
    """Class 1 where the pixel is between 0.5 and 0.6, else class 0; every gradient says: brighter."""

    def forward(self, x):
        pixel = x.flatten(1)
        inside = ((pixel > 0.5) & (pixel < 0.6)).float()
        return torch.cat([1 - inside, inside + pixel - pixel.detach()], dim=1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("pixel", "steps", "clean", "robust", "worst_seen", "success", "first"),
    [
        (0.45, 0, 1, 1, 1, 0, None),
        (0.45, 1, 1, 0, 0, 1, 1),
        (0.45, 2, 1, 1, 0, 0, 1),  # broken on the way, right at the last iterate
        (0.35, 1, 1, 1, 1, 0, None),
        (0.55, 0, 0, 0, 0, None, 0),  # wrong from the beginning: not in the denominator of success
        (0.55, 1, 0, 1, 0, None, 0),
    ],
)
def test_last_iterate_and_worst_seen(tmp_path, targeted, pixel, steps, clean, robust, worst_seen, success, first):
    data = rlr.data.from_arrays(torch.full((1, 1, 1), pixel), [0], [7], num_classes=2)
    protocol = PGD(eps=1.0, step_size=0.1, steps=steps, start="clean", targeted=targeted)
    result = rlr.evaluate(Band(), data, protocol, out=tmp_path, **UNGUARDED)
    assert (result.clean.count, result.robust.count, result.robust_worst_seen.count) == (clean, robust, worst_seen)
    assert result.success == Proportion(success or 0, 0 if success is None else 1)
    row = table(tmp_path)[7]
    assert row["first_success"] == first
    assert row["target"] == (1 if targeted else None)


@pytest.mark.parametrize("protocol", [dataclasses.replace(p, restarts=3) for p in (WEAK, AIMED)])
def test_every_row_is_consistent(tmp_path, data, cnn, protocol):
    data = data.take(300)
    result = rlr.evaluate(cnn, data, protocol, out=tmp_path)
    rows = table(tmp_path)
    assert list(rows) == data.ids.sort().values.tolist()
    assert [row.id for row in result.rows] == data.ids.tolist()
    truth = dict(zip(data.ids.tolist(), data.labels.tolist(), strict=True))
    for row in rows.values():
        assert row["label"] == truth[row["id"]]
        assert (row["target"] is not None) == protocol.targeted
        assert row["target"] != row["label"]
        assert row["robust"] == (row["adversarial"] == row["label"])
        assert row["robust_worst_seen"] <= min(row["robust"], row["clean"] == row["label"])
        if not protocol.targeted:
            assert row["success"] == (not row["robust"])
        assert row["success"] <= (not row["robust"])
        assert row["success"] <= (row["first_success"] is not None)
        assert 0 < row["distance"] <= protocol.eps + 1e-6
    assert {None, 0, 1, 2, 3} <= {row["first_success"] for row in rows.values()} <= {None, *range(5)}


def test_least_likely_targets_come_from_the_clean_image(tmp_path, data, cnn):
    data = data.take(128)
    rlr.evaluate(cnn, data, dataclasses.replace(AIMED, target="least-likely"), out=tmp_path)
    x, y, ids = data.batch(torch.arange(128))
    goals = cnn.eval()(x).scatter(1, y[:, None], torch.inf).argmin(1)
    assert {id_: row["target"] for id_, row in table(tmp_path).items()} == dict(
        zip(ids.tolist(), goals.tolist(), strict=True)
    )


def test_no_room_no_steps_and_no_attack_give_the_clean_accuracy(data, cnn):
    data = data.take(200)
    for protocol in (PGD(eps=0.0, step_size=0.1, steps=2), PGD(eps=0.1, step_size=0.1, steps=0, start="clean"), "none"):
        result = rlr.evaluate(cnn, data, protocol)
        assert result.clean == result.robust == result.robust_worst_seen
        assert result.max_distance == 0


def test_restarts_steps_and_eps_never_help_the_defense(tmp_path, data, cnn):
    data = data.take(200)

    def broken(name, **values):
        rlr.evaluate(cnn, data, dataclasses.replace(WEAK, **values), out=tmp_path / name)
        rows = table(tmp_path / name).values()
        return (
            {row["id"] for row in rows if not row["robust"]},
            {row["id"] for row in rows if not row["robust_worst_seen"]},
            {row["id"] for row in rows if row["success"]},
        )

    # One small step from a random start. In the larger ball starts differ enough that restarts matter to every figure.
    for eps, matters in ((16 / 255, False), (96 / 255, True)):
        for targeted in (False, True):
            values = {"eps": eps, "steps": 1, "targeted": targeted}
            runs = [broken(f"restarts{n}{targeted}{matters}", restarts=n, **values) for n in (1, 2, 4)]
            for one, two, four in zip(*runs, strict=True):
                assert one <= two <= four
                assert not matters or len(one) < len(four)
    _, seen, _ = zip(*(broken(f"steps{n}", steps=n) for n in (0, 1, 2, 4, 8)), strict=True)
    assert seen[0] < seen[1] < seen[2] < seen[3] <= seen[4]
    levels = (0, 1, 2, 4, 8, 16, 255)
    _, seen, _ = zip(*(broken(f"eps{n}", eps=n / 255, step_size=n / 255 / 2, steps=8) for n in levels), strict=True)
    counts = [len(ids) for ids in seen]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[4]
    assert counts[-1] == len(data)


def test_result_says_what_was_done(tmp_path, data, cnn):
    result = rlr.evaluate(cnn, data.take(70), AIMED, seed=3, out=tmp_path, name="mine")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert record == json.loads(json.dumps(result.to_dict()))
    assert sorted(os.listdir(tmp_path)) == ["ledger.sqlite", "result.json"]
    assert record["protocol"] == AIMED.values()
    assert (record["model"], record["data"], record["seed"], record["n"]) == ("mine", "fashion-mnist-mini", 3, 70)
    for name in ("clean_accuracy", "robust_accuracy", "robust_accuracy_worst_seen", "attack_success"):
        n, (low, high) = record["denominators"][name], record["intervals"][name]
        assert 0 <= low <= record[name] <= high <= 1
        assert (record[name] * n) == pytest.approx(round(record[name] * n))
        assert [low, high] == list(wilson(round(record[name] * n), n))
    assert record["robust_accuracy"] == result.robust.value
    assert record["attack_success"] == result.success.value
    assert record["denominators"]["robust_accuracy"] == 70
    assert record["weights_sha256"] == weights_hash(cnn)
    assert record["images_sha256"] == rlr.data.content_hash(data.take(70))
    assert {"robust-lr", "torch", "numpy", "python"} <= set(record["versions"])
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"].startswith("cpu: ")
    assert record["precision"] == "fp32"
    assert record["batch_invariant"] is True
    assert record["backwards"] == 70 * 4
    assert record["forwards"] == 70 * (1 + 4 + 1)
    assert record["max_distance"] == pytest.approx(16 / 255, abs=1e-6)


def test_a_result_with_an_empty_denominator_is_json(tmp_path):
    data = rlr.data.from_arrays(torch.full((1, 1, 1), 0.55), [0], num_classes=2)
    result = rlr.evaluate(Band(), data, PGD(eps=1.0, step_size=0.1, steps=1), out=tmp_path, **UNGUARDED)
    record = json.loads((tmp_path / "result.json").read_text())
    assert result.success.n == record["denominators"]["attack_success"] == 0
    assert record["attack_success"] is None
    assert record["intervals"]["attack_success"] == [0, 1]


def test_seconds_are_the_time_of_the_attack_whatever_the_padding(data):
    calls = []

    class Slow(nn.Flatten):
        def forward(self, x):
            calls.append(len(x))
            time.sleep(0.005)
            return super().forward(x)[:, :10]

    began = time.perf_counter()
    result = rlr.evaluate(Slow(), data.take(10), WEAK, batch_size=2, compute_batch=2, **UNGUARDED)
    wall = time.perf_counter() - began
    assert 0.005 * 5 * (1 + WEAK.steps + 1) <= result.seconds <= wall


# what it must not depend on


#: passes of a look at the model before an evaluation, without guards: where its logits are, their dtype and shape, and
#: what it answers to a few images together with images near them
LOOKS = 4
#: where every pass is counted: nothing is probed afterwards either
UNPROBED = {**UNGUARDED, "check": "off"}


class Spy(nn.Module):
    """Remembers every batch that it is shown without a gradient: the clean images and the finished ones."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shown, self.rows = model, [], []

    def forward(self, x):
        self.rows.append(len(x))
        if not torch.is_grad_enabled():
            self.shown.append(x.clone())
        return self.model(x)

    def finished(self, images):
        """Finished images by clean image, as bytes: those of the last passes, which are pairs of at most 64 rows."""
        shown = self.shown[-2 * math.ceil(images / 64) :]
        return {
            a.numpy().tobytes(): b.numpy().tobytes()
            for before, after in zip(shown[::2], shown[1::2], strict=True)
            for a, b in zip(before, after, strict=True)
        }


@pytest.mark.parametrize("protocol", [dataclasses.replace(WEAK, steps=0), WEAK, AIMED], ids=["start", "away", "aimed"])
def test_starts_and_finished_images_are_the_same_to_the_bit_for_any_batch_size_and_order(data, cnn, protocol):
    data = data.take(200)
    mixed = data.subset(torch.randperm(200, generator=torch.Generator().manual_seed(0)))
    finished = []
    for images, batch_size in ((data, 64), (data, 7), (mixed, 50), (data, 500)):
        spy = Spy(cnn)
        rlr.evaluate(spy, images, protocol, batch_size=batch_size, **UNPROBED)
        finished.append(spy.finished(200))
    assert len(finished[0]) == 200
    assert finished[0] == finished[1] == finished[2] == finished[3]
    spy = Spy(cnn)
    rlr.evaluate(spy, data, protocol, seed=1, **UNPROBED)
    assert all(value != finished[0][key] for key, value in spy.finished(200).items())


@pytest.mark.parametrize(
    ("network", "compute_batch", "protocol", "n"),
    [("cnn", None, AIMED, 1000), ("cnn", 16, WEAK, 150), ("resnet", 8, AIMED, 150)],
)
def test_batch_sizes_7_and_64_give_the_same_verdict_for_every_image(
    tmp_path, data, request, network, compute_batch, protocol, n
):
    model = request.getfixturevalue(network)
    results = {
        size: rlr.evaluate(
            model, data.take(n), protocol, batch_size=size, compute_batch=compute_batch, out=tmp_path / str(size)
        )
        for size in (7, 64)
    }
    assert len(table(tmp_path / "7")) == n
    assert table(tmp_path / "7") == table(tmp_path / "64")
    assert timeless(results[7]) == timeless(results[64])
    assert results[7].batch_invariant


@pytest.mark.parametrize(("batch_size", "compute_batch", "rows"), [(7, None, {16}), (64, 16, {16}), (7, 0, {7, 6})])
def test_every_pass_behind_a_figure_has_the_same_number_of_rows(data, cnn, batch_size, compute_batch, rows):
    spy = Spy(cnn)
    result = rlr.evaluate(spy, data.take(20), WEAK, batch_size=batch_size, compute_batch=compute_batch, **UNPROBED)
    assert set(spy.rows[LOOKS:]) == rows
    assert result.batch_invariant == (compute_batch != 0)


def test_batches_as_they_come_keep_starts_and_targets_and_say_so(tmp_path, data, cnn):
    data = data.take(100)
    results = [
        rlr.evaluate(cnn, data, AIMED, batch_size=size, compute_batch=0, out=tmp_path / str(size)) for size in (7, 64)
    ]
    seven, whole = table(tmp_path / "7"), table(tmp_path / "64")
    assert [row["target"] for row in seven.values()] == [row["target"] for row in whole.values()]
    assert not any(result.batch_invariant for result in results)
    assert abs(results[0].robust.count - results[1].robust.count) <= 1


def test_shards_and_subsets_join_to_the_whole(tmp_path, data, cnn):
    data = data.take(200)
    whole = rlr.evaluate(cnn, data, AIMED, out=tmp_path / "whole")
    parts = [rlr.evaluate(cnn, data, AIMED, shard=(i, 3), out=tmp_path / str(i)) for i in (1, 2, 3)]
    joined = {}
    for i in (1, 2, 3):
        rows = table(tmp_path / str(i))
        assert not joined.keys() & rows.keys()
        joined |= rows
    assert joined == table(tmp_path / "whole")
    assert [part.n for part in parts] == [67, 67, 66]
    assert [part.shard for part in parts] == ["1/3", "2/3", "3/3"]
    assert whole.shard is None
    for share in ("clean", "robust", "robust_worst_seen", "success"):
        assert sum(getattr(part, share).count for part in parts) == getattr(whole, share).count
        assert sum(getattr(part, share).n for part in parts) == getattr(whole, share).n
    some = data.subset([150, 3, 77])
    rlr.evaluate(cnn, some, AIMED, out=tmp_path / "some")
    assert table(tmp_path / "some") == {int(i): joined[int(i)] for i in some.ids.sort().values}


def test_arithmetic_is_fp32_whatever_the_caller_has_switched_on(data, cnn):
    settings = set()
    cnn.eval()

    class Curious(nn.Module):
        def forward(self, x):
            settings.add((torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision(), cnn(x).dtype))
            return cnn(x)

    plain = rlr.evaluate(Curious(), data.take(64), WEAK)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert timeless(rlr.evaluate(Curious(), data.take(64), WEAK)) == timeless(plain)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert settings == {(False, "highest", torch.float32)}


def test_loading_in_workers_changes_nothing(tmp_path, data, cnn):
    data = data.take(100)
    rlr.evaluate(cnn, data, WEAK, out=tmp_path / "here")
    rlr.evaluate(cnn, data, WEAK, out=tmp_path / "there", workers=1)
    assert table(tmp_path / "here") == table(tmp_path / "there")


# the model


def snapshot(model):
    parameters = {
        name: (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone())
        for name, p in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return parameters, buffers, {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("network", ["cnn", "resnet"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(data, request, network, fails):
    model = request.getfixturevalue(network)
    data = data.take(8)
    model(data.batch(torch.arange(8))[0]).sum().backward()
    first, *_, last = model.parameters()
    first.grad = None
    last.requires_grad_(False)
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    before, state = snapshot(model), torch.get_rng_state()
    if fails:
        with pytest.raises(Interrupt):
            rlr.evaluate(model, data, AIMED, batch_size=4, progress=interrupt_at(4))
    else:
        rlr.evaluate(model, data, AIMED, batch_size=4)
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_model_without_parameters_works(data):
    class Ten(nn.Flatten):
        def forward(self, x):
            return super().forward(x)[:, 300:310]

    assert rlr.evaluate(Ten(), data.take(10), WEAK, **UNGUARDED).n == 10


def test_logits_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
    with pytest.raises(InputError, match="the model has 7 classes, but the data set has labels up to 9"):
        rlr.evaluate(model, data, WEAK, out=tmp_path / "new")
    wrong = rlr.build_model("resnet18", width=1 / 64, stem="small", in_channels=3, num_classes=10)
    with pytest.raises(InputError, match=r"the model takes \[N, 3, H, W\]"):
        rlr.evaluate(wrong, data, WEAK, out=tmp_path / "new")
    assert os.listdir(tmp_path) == []


class Faulty(nn.Module):
    """Adds to the logits of one image, known by its clean pixels, what ``fault`` makes of it."""

    def __init__(self, model, image, fault):
        super().__init__()
        self.model, self.image, self.fault = model, image, fault

    def forward(self, x):
        logits = self.model(x)
        here = ((x - self.image).abs().flatten(1).amax(1) < 0.1).nonzero().flatten()
        return logits if not len(here) else logits.index_add(0, here, self.fault(x[here]))


def nan_logits(x):
    return torch.full((len(x), 10), torch.nan)


def nan_gradients(x):
    return (x - x).flatten(1)[:, :10].sqrt()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(nan_logits, "logits for image {} are not finite"), (nan_gradients, "on image {}: .*gradients finite")],
)
def test_what_is_not_finite_stops_the_run_and_names_the_image(tmp_path, data, cnn, fault, message):
    data = data.take(128)
    image, _, id_ = data[101]  # the guards look at even numbers
    model = Faulty(cnn, image, fault)
    with pytest.raises(RunError, match=message.format(id_)):
        rlr.evaluate(model, data, WEAK, batch_size=50, out=tmp_path)
    assert os.listdir(tmp_path) == ["ledger.sqlite"]
    assert len(table(tmp_path)) == 64  # what was done before is kept
    model.fault = lambda x: torch.zeros(len(x), 10)
    resumed = rlr.evaluate(model, data, WEAK, batch_size=50, out=tmp_path, resume=True)
    assert timeless(resumed) == timeless(rlr.evaluate(model, data, WEAK))


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan])
def test_images_outside_the_range_are_refused(tmp_path, data, cnn, wrong):
    images = data.batch(torch.arange(128))[0]
    good = rlr.data.from_arrays(images, data.labels[:128], range(300, 428), num_classes=10)
    for place in (0, 5):  # the guards look at even numbers
        spoilt = images.clone()
        spoilt[place, 0, 14, 14] = wrong
        bad = dataclasses.replace(good, images=spoilt)
        with pytest.raises(InputError, match=rf"image {300 + place} spans .*pixels must be in \[0, 1\]"):
            rlr.evaluate(cnn, bad, WEAK, out=tmp_path / str(place))
    assert not (tmp_path / "0").exists()
    assert os.listdir(tmp_path / "5") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "lrnet-targetted"}, "unknown protocol 'lrnet-targetted': did you mean 'lrnet-targeted'"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"compute_batch": -1}, "compute_batch = -1: must be at least 0"),
        ({"shard": (0, 3)}, "shard 0/3"),
        ({"shard": (4, 3)}, "shard 4/3"),
        ({"shard": (1, 1001)}, "shard 1/1001: .* n <= 1000"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, data, cnn, arguments, message):
    with pytest.raises(InputError, match=message):
        rlr.evaluate(cnn, data, **({"protocol": WEAK, "out": tmp_path / "new"} | arguments))
    assert not (tmp_path / "new").exists()


def test_a_targeted_attack_needs_two_classes(data):
    one = rlr.data.from_arrays(torch.zeros(2, 1, 4, 4), [0, 0], num_classes=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(InputError, match="num_classes = 1, at least 2 needed"):
        rlr.evaluate(model, one, AIMED)
    assert rlr.evaluate(model, one, WEAK, **UNGUARDED).robust.value == 1


# interruptions


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, data, cnn):
    data = data.take(160)
    whole = rlr.evaluate(cnn, data, AIMED, batch_size=32, out=tmp_path / "whole")
    with pytest.raises(Interrupt):
        rlr.evaluate(cnn, data, AIMED, batch_size=32, out=tmp_path / "parts", progress=interrupt_at(64))
    assert os.listdir(tmp_path / "parts") == ["ledger.sqlite"]
    assert len(table(tmp_path / "parts")) == 64
    seen = []
    resumed = rlr.evaluate(
        cnn, data, AIMED, batch_size=7, out=tmp_path / "parts", resume=True, progress=lambda *now: seen.append(now)
    )
    assert seen == [(64, 160), (128, 160), (160, 160)]
    assert timeless(resumed) == timeless(whole)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    records = [json.loads((tmp_path / part / "result.json").read_text()) for part in ("whole", "parts")]
    for record in records:
        assert record.pop("seconds") > 0
        assert record.pop("date")
        record.pop("command")  # of the run, not of its result
    assert [record.pop("read_from_ledger") for record in records] == [0, 64]
    assert records[0] == records[1]


def test_a_finished_run_is_read_not_repeated(tmp_path, data, cnn):
    data = data.take(20)
    first = rlr.evaluate(cnn, data, WEAK, out=tmp_path)
    (tmp_path / "result.json").unlink()
    spy = Spy(nn.Identity())
    handle = cnn.register_forward_hook(lambda *_: spy.shown.append(None))
    assert rlr.evaluate(cnn, data, WEAK, out=tmp_path, resume=True, **UNGUARDED) == first
    handle.remove()
    assert len(spy.shown) == LOOKS + 1  # passes of 16 rows: the images near the 20 are in a second one
    assert (tmp_path / "result.json").exists()


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        import torch
        import robust_lr as rlr

        class Linear(torch.nn.Linear):
            calls = 0
            def forward(self, x):
                self.calls += 1
                if self.calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().forward(x.flatten(1))

        def run(out, kill_at_call, resume):
            global kill_at
            kill_at = kill_at_call
            torch.manual_seed(0)
            data = rlr.data.load("fashion-mnist-mini", "test").take(100)
            protocol = rlr.protocols.PGD(eps=0.1, step_size=0.02, steps=5, targeted=True)
            return rlr.evaluate(Linear(784, 10), data, protocol, compute_batch=10, processes=1, out=out, resume=resume)
        """
    )
    killed = subprocess.run(
        [sys.executable, "-c", f"{script}\nrun(sys.argv[1], 40, False)", str(tmp_path / "killed")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert 0 < len(table(tmp_path / "killed")) < 100
    assert not (tmp_path / "killed" / "result.json").exists()
    room = {}
    exec(script, room)
    resumed = room["run"](tmp_path / "killed", 0, True)
    whole = room["run"](tmp_path / "whole", 0, False)
    assert timeless(resumed) == timeless(whole)
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


@pytest.fixture
def begun(tmp_path, data, cnn):
    """The arguments of an evaluation that was interrupted halfway."""
    arguments = {"model": cnn, "data": data.take(20), "protocol": WEAK, "compute_batch": 10, "out": tmp_path / "run"}
    with pytest.raises(Interrupt):
        rlr.evaluate(**arguments, batch_size=10, progress=interrupt_at(10))
    return arguments


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"protocol": dataclasses.replace(WEAK, eps=0.5)}, "protocol.eps was 0.0156.* and is 0.5"),
        ({"protocol": dataclasses.replace(WEAK, targeted=True)}, "protocol.targeted was False and is True"),
        ({"protocol": dataclasses.replace(WEAK, restarts=2)}, "protocol.restarts was 1 and is 2"),
        ({"shard": (1, 2)}, "images was 20 and is 10"),
        ({"shard": (1, 1)}, "shard was None and is '1/1'"),
        ({"compute_batch": 32}, "compute_batch was 10 and is 32"),
        ({"name": "other"}, "model was 'Sequential' and is 'other'"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(begun, changed, named):
    before = table(begun["out"])
    with pytest.raises(InputError, match=rf"holds another evaluation: {named}; start afresh \(`fresh`\), or choose"):
        rlr.evaluate(**(begun | changed), resume=True)
    assert table(begun["out"]) == before
    assert len(table(begun["out"])) == 10


def test_other_weights_and_images_are_refused(begun, data):
    with torch.no_grad():
        begun["model"][1].running_var[0] += 1e-6  # a buffer counts as well
    with pytest.raises(
        InputError,
        match=r"weights_sha256 was \w{8}\.\.\. and is \w{8}\.\.\. \(the weights of the network differ",
    ):
        rlr.evaluate(**begun, resume=True)
    with torch.no_grad():
        begun["model"][1].running_var[0] -= 1e-6
    with pytest.raises(InputError, match="images_sha256 was"):
        rlr.evaluate(**(begun | {"data": data.subset(range(1, 21))}), resume=True)


def test_a_used_folder_is_refused_unless_resumed(begun):
    with pytest.raises(InputError, match=r"ledger.sqlite exists: continue that evaluation \(`resume`\), start afresh"):
        rlr.evaluate(**begun)
    assert len(table(begun["out"])) == 10


# many at once


def test_benchmark_evaluates_every_pair(tmp_path, data, cnn, resnet):
    data = data.take(20)
    custom = dataclasses.replace(WEAK, name="weak")
    done = rlr.benchmark({"a": cnn, "b": resnet}, data, ["none", custom], out=tmp_path, seed=3)
    assert set(done.results) == {("a", "none"), ("a", "weak"), ("b", "none"), ("b", "weak")}
    for (model, protocol), result in done.results.items():
        assert (result.model, result.protocol["name"], result.seed) == (model, protocol, 3)
        assert json.loads((tmp_path / model / protocol / "result.json").read_text()) == json.loads(
            json.dumps(done.to_dict()[model][protocol])
        )
    alone = rlr.evaluate(resnet, data, custom, seed=3, name="b")
    assert timeless(done.results["b", "weak"]) == timeless(alone)
    assert {result.hashes["images"] for result in done.results.values()} == {alone.hashes["images"]}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["none", WEAK, AIMED], "protocol 'custom' is given twice: give each custom protocol a name of its own"),
        (["none", "none"], "protocol 'none' is given twice"),
        (["none", "nine"], "unknown protocol 'nine'"),
    ],
)
def test_a_benchmark_refuses_wrong_protocols_before_any_work(tmp_path, data, cnn, chosen, message):
    with pytest.raises(InputError, match=message):
        rlr.benchmark({"a": cnn}, data.take(2), protocols=chosen, out=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_resume_tells_networks_with_the_same_weights_apart(tmp_path):
    data = rlr.data.load("fashion-mnist-mini", "test").take(2)
    protocol = rlr.protocols.PGD(eps=0.1, step_size=0.1, steps=1)
    for phi in ("squared_difference", "product"):
        torch.manual_seed(0)
        model = rlr.build_model("lrnet26", num_classes=10, in_channels=1, width=1 / 16, composability=phi)
        if phi == "product":
            with pytest.raises(rlr.InputError, match="another evaluation: architecture was"):
                rlr.evaluate(model, data, protocol, out=tmp_path, resume=True)
        else:
            rlr.evaluate(model, data, protocol, out=tmp_path)
