"""Transfer attacks: gradients of a surrogate, verdicts of the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import PGD
from robust_lr.utils.errors import InputError

ATTACK = PGD(eps=0.1, step_size=0.02, steps=8, start="clean")
FREE = {"allow": tuple(GUARDS), "compute_batch": 16}


def linear(seed: int, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes)).eval()


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(40)


def test_verdicts_are_those_of_the_model_on_images_made_on_the_surrogate(data, tmp_path):
    model, surrogate = linear(0), linear(1)
    x, labels, _ = data.batch(torch.arange(len(data)))
    made = rlr.attacks.pgd_linf(surrogate, x, labels, eps=0.1, step_size=0.02, steps=8)
    result = rlr.evaluate(model, data, ATTACK, surrogate=surrogate, out=tmp_path, **FREE)
    with torch.no_grad():
        right = (model(made).argmax(1) == labels).tolist()
        clean = (model(x).argmax(1) == labels).tolist()
    assert [row.robust for row in result.rows] == right
    assert [row.robust_worst_seen for row in result.rows] == [a and b for a, b in zip(right, clean, strict=True)]
    assert all((row.forwards, row.backwards) == (1 + 8 + 1, 8) for row in result.rows)
    assert result.surrogate is not None
    assert result.surrogate["name"] == "Sequential"
    assert result.verdict is None
    assert "transfer: gradients of Sequential" in str(result)
    white = rlr.evaluate(model, data, ATTACK, check="off", **FREE)
    assert white.success.value > result.success.value
    assert white.surrogate is None
    own = rlr.evaluate(model, data, ATTACK, surrogate=model, check="off", **FREE)
    assert [row.robust for row in own.rows] == [row.robust for row in white.rows]
    with pytest.raises(InputError, match="surrogate"):  # another one in the same folder
        rlr.evaluate(model, data, ATTACK, surrogate=linear(2), out=tmp_path, resume=True, **FREE)


@pytest.mark.parametrize("values", [{}, {"diversity": 0.7, "momentum": 1.0}, {"smoothing": 7}])
def test_rows_do_not_depend_on_batch_or_shard(data, tmp_path, values):
    attack = dataclasses.replace(ATTACK, **values)

    def rows(**options):
        found = rlr.evaluate(linear(0), data, attack, surrogate=linear(1), **FREE, **options)
        return [(r.id, r.robust, r.loss, r.distance, r.forwards) for r in found.rows]

    whole = rows(batch_size=64)
    assert whole[0][4] == 1 + 8 * (2 if attack.diversity else 1) + 1
    assert rows(batch_size=7) == rows(batch_size=1, processes=1) == whole
    assert sorted(row for i in (1, 2, 3) for row in rows(shard=(i, 3))) == whole


def test_flags_of_the_surrogate_are_restored(data):
    surrogate = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10)).train()
    rlr.evaluate(linear(0), data, ATTACK, surrogate=surrogate, **FREE)
    assert surrogate.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in surrogate.parameters())


def test_bad_surrogates_and_protocols_are_one_line_each(data):
    with pytest.raises(InputError, match="`surrogate`: it has 7 classes, the model 10"):
        rlr.evaluate(linear(0), data, ATTACK, surrogate=linear(1, 7), **FREE)
    with pytest.raises(InputError, match="`surrogate`: the gradient is zero everywhere"):
        rlr.evaluate(linear(0), data, ATTACK, surrogate=Constant(), compute_batch=16, allow=("normalization",))
    for protocol in ("autoattack-fast", "square", "sweep-steps", "fmn-l2"):
        with pytest.raises(InputError, match="cannot take its gradients from a `surrogate`"):
            rlr.evaluate(linear(0), data, protocol, surrogate=linear(1), **FREE)


class Constant(nn.Module):
    """Logits that do not change with the pixels."""

    def forward(self, x):
        return torch.linspace(-1, 2, 10).expand(len(x), 10) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\ndef make(classes=10):\n    torch.manual_seed(1)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, classes))\n"
        "def seven():\n    return make(7)\n"
    )
    common = ["attack", "--protocol", "di-fgsm", "--limit", "8", "--allow", "normalization"]

    def run(*arguments: str) -> tuple[int, str]:
        found = CliRunner().invoke(main, [*common, *arguments])
        return found.exit_code, " ".join(found.output.split())

    out = tmp_path / "out"
    code, output = run("--surrogate", f"{tmp_path / 'nets.py'}:make", "--out", str(out))
    assert code == 0, output
    assert "transfer: gradients of nets-make" in output
    assert json.loads((out / "result.json").read_text())["surrogate"]["name"] == "nets-make"
    code, output = run("--surrogate", f"{tmp_path / 'nets.py'}:seven", "--out", str(tmp_path / "bad"))
    assert code == 2
    assert "--surrogate" in output
    assert "7 classes" in output
    assert not (tmp_path / "bad").exists()
