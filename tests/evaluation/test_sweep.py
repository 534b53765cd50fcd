"""Curves by steps and by eps, and lower precision."""

import dataclasses
import importlib
import json
import sys

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr import protocols
from robust_lr.cli import main
from robust_lr.commands import report
from robust_lr.evaluation.guards import GUARDS
from robust_lr.evaluation.sweep import sweep
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.sweep import Sweep
from robust_lr.results.curve import merge_sweep
from robust_lr.results.ledger import read
from robust_lr.utils.errors import InputError, RunError

QUICK = {"compute_batch": 16, "allow": tuple(GUARDS)}
STEPS = (0, 1, 3, 6, 10)
CURVED = PGD(eps=12 / 255, step_size=3 / 255, steps=10, record=STEPS)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(48)


@pytest.fixture(scope="module")
def model():
    """A linear classifier by class means: quick, and wrong often enough."""
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(1000))
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for label in range(10):
            mean = x[y == label].flatten(1).mean(0)
            net[1].weight[label] = mean
            net[1].bias[label] = -mean @ mean / 2
    return net


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("criterion", ["last", "worst"])
def test_a_curve_from_one_trajectory_is_that_of_separate_runs(data, model, targeted, criterion):
    curved = dataclasses.replace(CURVED, targeted=targeted, criterion=criterion)
    result = rlr.evaluate(model, data, curved, **QUICK)
    assert [steps for steps, _ in result.curve] == list(STEPS)
    for steps, shares in result.curve:
        alone = rlr.evaluate(model, data, dataclasses.replace(curved, steps=steps, record=()), **QUICK)
        assert shares["robust_accuracy_worst_seen"] == alone.robust_worst_seen
        assert shares["attack_success"] == alone.success
        assert shares.get("robust_accuracy_last") == alone.robust_last
    counts = [shares["robust_accuracy_worst_seen"].count for _, shares in result.curve]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert result.curve[-1][1]["attack_success"] == result.success


def test_a_curve_with_restarts_counts_each_image_in_its_worst_restart(data, model):
    many = dataclasses.replace(CURVED, restarts=3)
    one, three = (rlr.evaluate(model, data, protocol, **QUICK) for protocol in (CURVED, many))
    for (steps, few), (_, more) in zip(one.curve, three.curve, strict=True):
        assert more["robust_accuracy_last"].count <= few["robust_accuracy_last"].count
        alone = rlr.evaluate(model, data, dataclasses.replace(many, steps=steps, record=()), **QUICK)
        assert more["robust_accuracy_last"] == alone.robust_last


def at(level):
    first = protocols.SWEEPS["sweep-eps"].parts[0]
    return dataclasses.replace(first, eps=level / 255, step_size=level / 255 / 8, steps=12, name=f"eps-{level}")


def test_worst_seen_never_rises_with_eps_and_ends_at_0(tmp_path, data, model):
    parts = tuple(at(level) for level in (0, 2, 8, 32, 255))
    curve = sweep(model, data, Sweep(axis="eps", parts=parts, name="mine"), out=tmp_path, **QUICK)
    counts = [shares["robust_accuracy_worst_seen"].count for _, shares in curve.points]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == curve.results[0].clean.count
    assert counts[-1] == 0
    assert [value for value, _ in curve.points] == [part.eps for part in parts]
    record = json.loads((tmp_path / "curve.json").read_text())
    assert record == json.loads(json.dumps(curve.to_dict()))
    assert [point["robust_accuracy_worst_seen"] * len(data) for point in record["points"]] == pytest.approx(counts)
    assert len(read(tmp_path / "eps-8" / "ledger.sqlite")) == len(data)
    again = sweep(model, data, Sweep(axis="eps", parts=parts, name="mine"), out=tmp_path, resume=True, **QUICK)
    assert again.points == curve.points


MINE = Sweep(axis="eps", parts=(at(2), dataclasses.replace(at(8), record=(6, 12))), name="mine")


#: keys that say when and how a result was computed, and what the probes of each shard's own sample found
OF_THE_RUN = {
    "seconds",
    "date",
    "command",
    "validity",
    "verdict",
    "verdict_reason",
    "verdict_advice",
    "bound",
    "inflation",
}


def without_seconds(folder):
    record = json.loads((folder / "curve.json").read_text())
    results = [{key: value for key, value in result.items() if key not in OF_THE_RUN} for result in record["results"]]
    return {**record, "results": results}


def test_shards_of_a_sweep_are_joined_to_the_whole(tmp_path, data, model):
    whole = sweep(model, data, MINE, out=tmp_path / "whole", **QUICK)
    for i in (1, 2, 3):
        part = sweep(model, data, MINE, out=tmp_path / str(i), shard=(i, 3), **QUICK)
        assert part.results[0].n == 16
    joined = merge_sweep([tmp_path / name for name in "231"], tmp_path / "joined")
    assert joined.points == whole.points
    assert without_seconds(tmp_path / "joined") == without_seconds(tmp_path / "whole")
    assert sweep(model, data, MINE, out=tmp_path / "joined", resume=True, **QUICK).points == whole.points
    with pytest.raises(InputError, match=r"joined/eps-2 holds an evaluation: choose another folder"):
        merge_sweep([tmp_path / name for name in "123"], tmp_path / "joined")


def test_shards_that_are_no_whole_sweep_leave_nothing(tmp_path, data, model):
    for i in (1, 2):
        sweep(model, data, MINE, out=tmp_path / str(i), shard=(i, 2), **QUICK)
    other = dataclasses.replace(MINE, parts=MINE.parts[:1])
    sweep(model, data, other, out=tmp_path / "other", shard=(2, 2), **QUICK)
    rlr.evaluate(model, data, at(2), out=tmp_path / "single", shard=(2, 2), **QUICK)
    for names, words in {
        ("1",): "missing: shard 2/2",
        ("1", "other"): r"different sweeps: parts is \['eps-2', 'eps-8'\] in the first, \['eps-2'\] in the second",
        ("1", "single"): r"single holds no finished sweep \(curve\.json\)",
        (): "nothing to merge",
    }.items():
        with pytest.raises(InputError, match=words):
            merge_sweep([tmp_path / name for name in names], tmp_path / "new")
    (tmp_path / "2" / "eps-8" / "result.json").unlink()
    with pytest.raises(InputError, match=r"eps-8 has no result\.json yet"):
        merge_sweep([tmp_path / "1", tmp_path / "2"], tmp_path / "new")
    (tmp_path / "2" / "curve.json").write_text("{")
    with pytest.raises(InputError, match=r"curve\.json is damaged"):
        merge_sweep([tmp_path / "1", tmp_path / "2"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_sweep_that_stopped_has_no_curve(tmp_path, data, model):
    sweep(model, data, MINE, out=tmp_path, **QUICK)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(model, data, MINE, out=tmp_path, fresh=True, progress=stop, **QUICK)
    assert not (tmp_path / "curve.json").exists()


def test_what_a_smaller_ball_broke_stays_broken(data, model):
    """The larger ball comes with no steps at all here: by itself it would break less."""
    weak = dataclasses.replace(at(64), steps=0, start="clean")
    curve = sweep(model, data, Sweep(axis="eps", parts=(at(32), weak), name="mine"), **QUICK)
    (_, strong), (_, carried) = curve.points
    assert curve.results[1].robust_worst_seen.count > curve.results[0].robust_worst_seen.count
    assert carried["robust_accuracy_worst_seen"] == strong["robust_accuracy_worst_seen"]


def test_a_sweep_by_steps_joins_trajectories(data, model):
    parts = (PGD(eps=0.1, step_size=0.05, steps=2, name="a"), dataclasses.replace(CURVED, record=(3, 10), name="b"))
    curve = sweep(model, data, Sweep(axis="steps", parts=parts, name="mine"), **QUICK)
    assert [value for value, _ in curve.points] == [2, 3, 10]


@pytest.mark.parametrize(
    ("axis", "parts", "message"),
    [
        ("eps", (), r"eps = \[\]: a sweep needs increasing values"),
        ("eps", (at(8), at(2)), "a sweep needs increasing values"),
        ("colour", (at(8),), "unknown axis 'colour'"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(axis, parts, message):
    with pytest.raises(InputError, match=message):
        Sweep(axis=axis, parts=parts, name="mine")


def test_a_sweep_names_every_value_of_its_curve():
    assert str(protocols.SWEEPS["xie2019-targeted"]).startswith("steps 10, 100, 1000; ")


@pytest.mark.parametrize("record", [(3, 1), (1, 1), (11,), (-1,)])
def test_steps_to_record_are_some_of_the_steps_in_order(record):
    with pytest.raises(InputError, match=r"record = .*: increasing numbers from 0 to 10 are needed"):
        dataclasses.replace(CURVED, record=record)


def test_a_sweep_is_no_protocol_for_evaluate(data, model):
    with pytest.raises(InputError, match=r"'sweep-eps' is a sweep over several protocols: use robust_lr.sweep"):
        rlr.evaluate(model, data, "sweep-eps", **QUICK)


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["attack", "--limit", "4", *arguments])
    return stop.value.code or 0


def test_curves_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = ["--protocol", "sweep-steps", "--set", "record=[1, 2]", "--set", "steps=2"]
    assert command("--out", "out", *values) == 0
    assert "robust, last iterate" in capsys.readouterr().out
    assert command("--protocol", "none", "--figure", "a.png") == 2
    assert "draws a curve, but 'none' has none" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command("--out", "new", *values, "--figure", "a.png") == 2
    assert "drawing a figure needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()  # said before any time is spent


def test_shards_of_a_sweep_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(protocols.SWEEPS, "mine", MINE)
    assert command("--protocol", "mine", "--out", "whole") == 0
    for i in "12":
        assert command("--protocol", "mine", "--shard", f"{i}/2", "--out", i) == 0
        assert f"shard {i}/2: 2 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["merge", "1", "2", "--out", "joined"])
    assert "2 shards merged" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        assert not (tmp_path / "both" / "curve.json").exists()
        monkeypatch.setenv("RANK", rank)
        assert command("--protocol", "mine", "--out", "both") == 0
    for folder in ("joined", "both"):
        assert without_seconds(tmp_path / folder) == without_seconds(tmp_path / "whole")
    assert command("--protocol", "mine", "--set", "eps=0.1") == 2
    assert "--set and --save-targets are for single protocols" in capsys.readouterr().err


def test_a_curve_as_a_picture(tmp_path, data, model):
    pytest.importorskip("matplotlib")
    curve = sweep(model, data, Sweep(axis="eps", parts=(at(2), at(32)), name="mine"), **QUICK)
    report.curve_picture(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# precision


def test_bf16_is_reported_with_its_agreement(tmp_path, data, model):
    protocol = PGD(eps=8 / 255, step_size=2 / 255, steps=4)
    seen = set()

    class Spy(nn.Module):
        def forward(self, x):
            logits = model(x)
            seen.add((torch.is_grad_enabled(), logits.dtype))
            return logits

    result = rlr.evaluate(Spy(), data, protocol, precision="bf16", out=tmp_path, **QUICK)
    assert (result.precision, result.agreement.n) == ("bf16", len(data))
    assert result.agreement.value >= 0.95
    assert seen == {(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)}  # verdicts are fp32
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["precision_agreement"] == result.agreement.value
    plain = rlr.evaluate(model, data, protocol, **QUICK)
    assert (plain.precision, plain.agreement) == ("fp32", None)
    with pytest.raises(InputError, match="precision was 'bf16' and is 'fp32'"):
        rlr.evaluate(Spy(), data, protocol, out=tmp_path, resume=True, **QUICK)


def test_a_precision_is_compared_with_fp32_once(tmp_path, data, model, monkeypatch):
    room = importlib.import_module("robust_lr.evaluation.harness")  # the package's own name is the function
    count_agreement, asked = room.count_agreement, []
    monkeypatch.setattr(room, "count_agreement", lambda *values: asked.append(1) or count_agreement(*values))
    options = {"precision": "bf16", "out": tmp_path, "batch_size": 16, **QUICK}
    protocol = PGD(eps=8 / 255, step_size=2 / 255, steps=4)

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rlr.evaluate(model, data, protocol, progress=stop, **options)
    assert 0 < len(read(tmp_path / "ledger.sqlite")) < len(data)
    results = [rlr.evaluate(model, data, protocol, resume=True, **options) for _ in range(2)]
    assert asked == [1]
    assert results[0].agreement == results[1].agreement
    assert results[0].agreement.n == len(data)


def test_a_precision_that_changes_verdicts_is_refused(tmp_path, data, model):
    class Coarse(nn.Module):
        """In bf16 its gradient points nowhere."""

        def forward(self, x):
            return model(x.detach() if torch.is_autocast_enabled("cpu") else x) + 0 * x.sum()

    protocol = PGD(eps=32 / 255, step_size=8 / 255, steps=4, start="clean")
    with pytest.raises(RunError, match=r"'bf16' gives other verdicts than fp32 on \d+ of 48 images: use fp32"):
        rlr.evaluate(Coarse(), data, protocol, precision="bf16", out=tmp_path, **QUICK)
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("precision", "message"),
    [("fp16", "unknown precision 'fp16'"), ("tf32", "needs a CUDA device, the model is on 'cpu'")],
)
def test_other_precisions_are_refused(tmp_path, data, model, precision, message):
    with pytest.raises(InputError, match=message):
        rlr.evaluate(model, data, PGD(eps=0.1, step_size=0.1, steps=1), precision=precision, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
