"""Attacks that grow stronger until the number stops moving."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.evaluation import strengthen as room
from robust_lr.protocols.apgd import APGD
from robust_lr.protocols.pgd import PGD
from robust_lr.utils.errors import InputError

WEAK = PGD(eps=16 / 255, step_size=1 / 255, steps=1, start="clean", name="one-step")
STRONG = (
    APGD(name="apgd-ce", eps=16 / 255, steps=10),
    APGD(name="apgd-dlr", eps=16 / 255, steps=10, loss="dlr"),
    APGD(name="apgd-margin", eps=16 / 255, steps=20, loss="margin"),
)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(48)


@pytest.fixture(scope="module")
def model():
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(1000))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(room, "build_ladder", lambda eps, norm: STRONG)


def test_the_number_falls_until_it_stops_moving_and_the_result_says_by_what(model, data, tmp_path):
    first = rlr.evaluate(model, data, WEAK, check="default", out=tmp_path / "run")
    assert first.verdict == "weak"
    found = rlr.strengthen(model, data, first, out=tmp_path / "run")
    assert found.robust.count < first.robust.count
    assert found.robust.count == first.robust.count - sum(rung.broken for rung in found.rungs)
    assert [rung.protocol for rung in found.rungs] == [attack.name for attack in STRONG[: len(found.rungs)]]
    assert found.verdict == "sound"
    assert found.ended in ("the number has stopped moving", "no image is left")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["until_sound"] == found.to_dict()
    assert record["robust_accuracy"] == first.robust.value  # of the protocol that it names


def test_a_ladder_goes_on_where_it_was(model, data, tmp_path):
    first = rlr.evaluate(model, data, WEAK, check="default", out=tmp_path)

    class Interrupted(Exception):
        pass

    def stop(attack, done, total):
        if attack == "apgd-dlr" and done:
            raise Interrupted

    whole = rlr.strengthen(model, data, first)
    if len(whole.rungs) > 1:
        with pytest.raises(Interrupted):
            rlr.strengthen(model, data, first, out=tmp_path, progress=stop)
    resumed = rlr.strengthen(model, data, first, out=tmp_path)
    assert resumed.to_dict() == whole.to_dict()


def test_a_budget_ends_the_ladder_and_is_named(model, data):
    first = rlr.evaluate(model, data, WEAK, check="default")
    found = rlr.strengthen(model, data, first, budget=1)
    assert found.rungs == ()
    assert "budget of 1 passes" in found.ended
    assert found.verdict == "weak"
    with pytest.raises(InputError, match=r"budget.* 0"):
        rlr.strengthen(model, data, first, budget=0)


def test_misled_and_sound_numbers_are_left_as_they_are(model, data):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(2 * x.detach() - x)

    misled = rlr.evaluate(Backwards(), data, WEAK, check="default")
    assert misled.verdict == "misled"
    found = rlr.strengthen(Backwards(), data, misled)
    assert (found.rungs, found.verdict) == ((), "misled")
    assert "do not help" in found.ended


def test_what_cannot_be_strengthened_is_refused(model, data):
    unchecked = rlr.evaluate(model, data, WEAK, check="off")
    with pytest.raises(InputError, match="no verdict"):
        rlr.strengthen(model, data, unchecked)
    aimed = rlr.evaluate(model, data, PGD(eps=0.1, step_size=0.1, steps=1, targeted=True), check="off")
    with pytest.raises(InputError, match="only untargeted"):
        rlr.strengthen(model, data, aimed)


@pytest.mark.slow
def test_the_command_prints_the_ladder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["attack", "--limit", "16", "--threads", "1", "--out", "run"]
    result = CliRunner().invoke(main, [*start, "--untargeted", "--until-sound"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "until sound" in result.output
    assert "passes were used" in result.output
    assert "until_sound" in json.loads((tmp_path / "run" / "result.json").read_text())
    for wrong in (["--targeted"], ["--untargeted", "--no-check"], ["--untargeted", "--shard", "1/2"]):
        assert CliRunner().invoke(main, [*start, *wrong, "--until-sound"]).exit_code == 2
    assert CliRunner().invoke(main, [*start, "--untargeted", "--budget", "5"]).exit_code == 2
