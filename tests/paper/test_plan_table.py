from dataclasses import replace

import pytest
from click.testing import CliRunner

from robust_lr import protocols
from robust_lr.cli import main
from robust_lr.paper import plan as plan_room
from robust_lr.paper import tables
from robust_lr.paper.jobs import Attack
from robust_lr.paper.plan import most_passes, plan_table, total_hours
from robust_lr.training.plan import Plan

MEASURED = Plan(
    device="cpu: X",
    images=64,
    seconds=0.64,
    memory=1,
    epoch_images=4000,
    epochs=3,
    processes=1,
    share=64,
    assumed=None,
)


@pytest.fixture
def measured(monkeypatch):
    """Every network takes 10 ms an image and training step."""
    monkeypatch.setattr(plan_room, "plan", lambda config, **options: replace(MEASURED, epochs=config.train.epochs))


def test_a_table_is_planned_with_all_its_runs_and_attacks(measured):
    one, three = (plan_table(tables.read("table9", seeds=seeds)) for seeds in (1, 3))
    assert [(each.label, each.regime) for each in three] == [
        (label, regime) for regime in ("adversarial", "regular") for label in ("ResNet-26", "ResNet-50", "LR-Net-26")
    ]
    assert three[0].training.hours == pytest.approx(3 * 4000 * 0.01 / 3600)
    assert (three[0].runs, three[-1].runs) == (3, 1)
    assert three[-1].hours == pytest.approx(one[-1].hours)
    assert total_hours(three) < 3 * total_hours(one)  # AutoAttack and the sweep run for the first training run alone
    passes = 500 * 2 * 17  # 16 steps of two attacks and the clean pass
    assert one[-1].evaluation == pytest.approx(passes * 0.01 / plan_room.TRAINING_PASS / 3600)


def test_passes_of_a_cascade_are_those_of_all_its_attacks():
    pgd = most_passes(Attack("pgd", protocols.get("lrnet-untargeted")))
    assert pgd == 17
    assert most_passes(Attack("aa", protocols.get("autoattack-standard"))) > 100 + 9 * 100 + 5000 // 3


def test_the_command_plans_a_table(measured):
    result = CliRunner().invoke(main, ["plan", "table9/gpu"])
    assert result.exit_code == 0, result.output
    assert "LR-Net-26, adversarial" in result.stdout
    assert "in all on cpu: X" in result.stdout
