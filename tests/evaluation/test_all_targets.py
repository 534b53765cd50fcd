"""Targeted attacks on every wrong class, and the matrix of class by target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.evaluation.guards import GUARDS
from robust_lr.protocols import APGD, PGD
from robust_lr.results.ledger import read
from robust_lr.utils.errors import InputError

CLASSES = 4
OPTIONS = {"allow": tuple(GUARDS), "check": "off", "compute_batch": 16}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture
def data(model: nn.Module) -> rlr.data.Dataset:
    x = torch.rand((30, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = model(x).argmax(1)
    labels[:3] = (labels[:3] + 1) % CLASSES  # mistakes
    return replace(rlr.data.from_arrays(x.numpy(), labels.numpy()), num_classes=CLASSES)


@pytest.mark.parametrize(
    "protocol",
    [
        PGD(eps=0.1, step_size=0.02, steps=12, start="clean", targeted=True),
        APGD(eps=0.1, steps=12, targeted=True, loss="margin"),
    ],
)
def test_the_matrix_is_that_of_a_linear_model(model: nn.Module, data: rlr.data.Dataset, protocol: PGD) -> None:
    """In L-infinity a linear model's target is reached where every boundary to it is near enough for all at once."""
    matrix = rlr.attack_all_targets(model, data, protocol, **OPTIONS)
    x, labels, _ = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        clean = model(x).argmax(1)
    for label in range(CLASSES):
        for target in range(CLASSES):
            chosen = (labels == label) & (clean != target)
            if label == target:
                assert matrix.attacked[label][target] == matrix.reached[label][target] == 0
                continue
            assert matrix.attacked[label][target] == int(chosen.sum())
            x_adv = rlr.attacks.pgd_linf(
                model,
                x,
                torch.full_like(labels, target),
                eps=0.1,
                step_size=0.01,
                steps=60,
                targeted=True,
                loss=rlr.attacks.losses.margin,
            )
            with torch.no_grad():
                best = int((chosen & (model(x_adv).argmax(1) == target)).sum())
            assert abs(matrix.reached[label][target] - best) <= 1
    assert sum(map(sum, matrix.reached)) > 5
    assert matrix.robust.count <= int((clean == labels).sum())
    assert matrix.any_reached.n == int((clean == labels).sum())


def test_it_resumes_and_each_target_is_an_evaluation(tmp_path: Path, model: nn.Module, data: rlr.data.Dataset) -> None:
    protocol = PGD(eps=0.1, step_size=0.02, steps=5, targeted=True)
    whole = rlr.attack_all_targets(model, data, protocol, **OPTIONS)
    seen: list[int] = []

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) > 4:
            raise Stop

    with pytest.raises(Stop):
        rlr.attack_all_targets(model, data, protocol, out=tmp_path, progress=stop, **OPTIONS)
    assert not (tmp_path / "matrix.json").exists()
    assert rlr.attack_all_targets(model, data, protocol, out=tmp_path, resume=True, **OPTIONS) == whole
    record = json.loads((tmp_path / "matrix.json").read_text())
    assert record["reached"] == [list(row) for row in whole.reached]
    for shift in (1, 2, 3):
        rows = read(tmp_path / f"shift-{shift}" / "ledger.sqlite")
        assert all(row.target == (row.label + shift) % CLASSES for row in rows)


def test_what_has_no_targets_is_refused(model: nn.Module, data: rlr.data.Dataset) -> None:
    with pytest.raises(InputError, match="untargeted"):
        rlr.attack_all_targets(model, data, "madry-cifar10", **OPTIONS)
    with pytest.raises(InputError, match="shard"):
        rlr.attack_all_targets(model, data, "lrnet-targeted", shard=(1, 2), **OPTIONS)


def test_the_command_line(tmp_path: Path) -> None:
    common = ["attack", "--limit", "12", "--all-targets", "--no-check", "--out", str(tmp_path / "out")]

    def run(*arguments: str) -> tuple[int, str]:
        found = CliRunner().invoke(main, [*common, *arguments])
        return found.exit_code, " ".join(found.output.split())

    code, output = run("--targeted", "--set", "steps=1")
    assert code == 0, output
    assert "right under every target" in output
    assert len(json.loads((tmp_path / "out" / "matrix.json").read_text())["reached"]) == 10
    for wrong in (["--untargeted"], ["--targeted", "--shard", "1/2"], ["--protocol", "sweep-eps"]):
        code, output = run(*wrong)
        assert code == 2
        assert "--all-targets" in output
