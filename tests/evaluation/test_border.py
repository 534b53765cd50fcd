"""Verdicts of a lower precision near the border come from an attack in fp32."""

from dataclasses import replace

import pytest
import torch

import robust_lr as rlr
from robust_lr.evaluation import border
from robust_lr.evaluation.batch_state import Rows, size
from robust_lr.models.layers.fused_conv import has_bfloat16
from robust_lr.protocols import PGD

LAST = PGD(eps=0.1, step_size=0.02, steps=8)
WORST = replace(LAST, criterion="worst")


def rows(lead: list[float], first_wrong: list[int] | None = None, ids: list[int] | None = None) -> Rows:
    n = len(lead)
    return {
        "id": torch.tensor(ids or list(range(n))),
        "lead": torch.tensor(lead),
        "margin": torch.tensor(lead),
        "first_wrong": torch.tensor(first_wrong or [-1] * n),
        "forwards": torch.full((n,), 9),
        "backwards": torch.full((n,), 8),
        "seconds": torch.full((n,), 0.5, dtype=torch.float64),
    }


def test_the_border_is_as_wide_as_the_sample_says():
    exact = rows([0.5, -0.2, 1.0, 3.0, torch.inf])
    lower = rows([3.0, 1.01, -0.21, 0.48, torch.inf], ids=[3, 2, 1, 0, 4])
    moved = torch.tensor([0.02, 0.01, 0.01, 0.0])
    assert border.border_width(exact, lower, LAST) == pytest.approx(5 * float(moved.quantile(0.9)), rel=1e-4)
    nothing = rows([torch.inf])
    assert border.border_width(nothing, nothing, LAST) == 0


def test_last_iterates_are_near_on_either_side_and_worst_ones_unless_they_broke_early():
    found = rows([0.05, -0.05, 0.2, -0.2, -0.05], first_wrong=[-1, 7, -1, 8, 2])
    assert border.is_near(found, LAST, 0.1).tolist() == [True, True, False, False, True]
    assert border.is_near(found, WORST, 0.1).tolist() == [True, True, False, False, False]


def test_images_near_the_border_are_attacked_again_and_both_attacks_counted():
    groups = iter([rows([0.05, 5.0], ids=[7, 3]), rows([-0.05, 0.01, -4.0], ids=[1, 9, 2])])
    batches = []

    def attack(some: Rows):
        batches.append(some["id"].tolist())
        yield {**some, "lead": torch.zeros(size(some)), "forwards": torch.full_like(some["id"], 2)}

    found = list(border.attack_near_again(groups, LAST, 0.1, 2, attack))
    assert batches == [[7, 1], [9]]
    by_id = {
        int(i): (float(lead), int(n))
        for g in found
        for i, lead, n in zip(g["id"], g["lead"], g["forwards"], strict=True)
    }
    assert by_id == {3: (5.0, 9), 2: (-4.0, 9), 7: (0.0, 11), 1: (0.0, 11), 9: (0.0, 11)}


@pytest.mark.skipif(not has_bfloat16(), reason="no bf16 kernels")
def test_bf16_gives_the_verdicts_of_fp32(tmp_path):
    model, data = rlr.load_model(), rlr.data.load("fashion-mnist-mini", "test").take(192)
    protocol = PGD(eps=16 / 255, step_size=2 / 255, steps=8, targeted=True)
    exact, lower = (
        rlr.evaluate(model, data, protocol, precision=precision, check="off", out=tmp_path / precision)
        for precision in ("fp32", "bf16")
    )
    assert [row.robust for row in exact.rows] == [row.robust for row in lower.rows]
    again = {row.id for row in lower.rows if row.forwards > 10}
    assert 0 < len(again) < 0.3 * len(data)
    same = [
        (a.margin, a.loss) == (b.margin, b.loss) for a, b in zip(exact.rows, lower.rows, strict=True) if a.id in again
    ]
    assert all(same)  # those are the fp32 attack's own
