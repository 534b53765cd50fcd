"""Random models: gradients averaged over draws, verdicts from repeated passes, rows that do not depend on the batch."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_lr as rlr
from robust_lr.evaluation.randomness import detect_randomness, seed_generators
from robust_lr.protocols import APGD, PGD, Cascade
from robust_lr.utils.errors import InputError

CLASSES, SIDE = 4, 4


class Noisy(nn.Module):
    """A linear classifier of images with noise added, for each row or one for the whole pass."""

    def __init__(self, deviation: float, *, by_row: bool = True, generator: str = "torch"):
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE, CLASSES)
        self.deviation, self.by_row, self.generator = deviation, by_row, generator
        weights = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.linear.weight.copy_(2 * torch.randn(self.linear.weight.shape, generator=weights))
            self.linear.bias.zero_()

    def noise(self, shape: torch.Size) -> Tensor:
        if self.generator == "numpy":
            return torch.from_numpy(np.random.standard_normal(shape)).float()
        if self.generator == "python":
            return torch.tensor([random.gauss(0, 1) for _ in range(math.prod(shape))]).view(shape)
        if self.generator == "own":
            return torch.from_numpy(OWN.standard_normal(shape)).float()
        return torch.randn(shape)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape if self.by_row else x[:1].shape
        logits: Tensor = self.linear((x + self.deviation * self.noise(shape)).flatten(1))
        return logits


#: scaled images have less noise in proportion, which looks like a missing normalization
FREE = {"allow": ("normalization",)}


@pytest.fixture(autouse=True)
def seeded_generators() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


OWN = np.random.default_rng(0)


def images(model: Noisy, n: int = 24) -> rlr.data.Dataset:
    """Images that the model without noise classifies correctly."""
    x = torch.rand((n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model.linear(x.flatten(1)).argmax(1)
    return replace(rlr.data.from_arrays(x.numpy(), labels.numpy()), num_classes=CLASSES)


def rand(eps: float = 0.03, steps: int = 6) -> Cascade:
    return Cascade(
        name="rand",
        parts=(
            APGD(name="apgd-ce", eps=eps, steps=steps, eot=5),
            APGD(name="apgd-dlr", eps=eps, steps=steps, loss="dlr", eot=5),
        ),
    )


def essentials(result: rlr.Result) -> list[tuple[object, ...]]:
    return [
        (r.id, r.robust, r.success, r.first_wrong, r.wrong_passes, r.loss, r.margin, r.forwards, r.backwards)
        for r in result.rows
    ]


def test_rows_of_a_random_model_do_not_depend_on_batch_shard_or_processes(tmp_path: Path) -> None:
    model = Noisy(0.05)
    data = images(model)
    whole = rlr.evaluate(model, data, rand(), verdict_passes=4, processes=1)
    assert whole.randomness is not None
    assert whole.randomness["draws"] == "by row"
    assert whole.randomness["keyed"]
    assert 0 < whole.robust.count < len(data)
    for options in ({"batch_size": 7}, {"batch_size": 1, "processes": 1}, {"processes": 2}):
        torch.rand(3)  # the state of the generator is no part of it
        assert essentials(rlr.evaluate(model, data, rand(), verdict_passes=4, **options)) == essentials(whole)
    parts = [
        essentials(rlr.evaluate(model, data, rand(), verdict_passes=4, shard=(i, 3), out=tmp_path / str(i)))
        for i in (1, 2, 3)
    ]
    assert sorted(row for part in parts for row in part) == essentials(whole)
    merged = rlr.merge([tmp_path / str(i) for i in (1, 2, 3)], tmp_path / "whole")
    assert merged.randomness == whole.randomness


def test_an_image_is_robust_only_if_every_pass_is_right() -> None:
    model = Noisy(0.3)
    data = images(model)
    found = [rlr.evaluate(model, data, rand(eps=0.001), verdict_passes=k, **FREE) for k in (2, 10, 100)]
    for result in found:
        for row in result.rows:
            assert row.wrong_passes is not None
            assert row.robust == (row.wrong_passes == 0)
    assert found[0].robust.count > found[1].robust.count > found[2].robust.count
    assert all(result.verdict is None for result in found)  # probes are for deterministic models


def test_the_interval_of_one_pass_holds_its_accuracy() -> None:
    """95 % of single passes over the finished images lie in the interval, here over the clean ones."""
    model = Noisy(0.3)
    data = images(model, 64)
    result = rlr.evaluate(model, data, PGD(eps=0.0, step_size=0.0, steps=1, eot=2), verdict_passes=200, **FREE)
    assert result.randomness is not None
    low, high = result.randomness["one_pass_interval"]
    x, labels, _ = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        single = [float((model(x).argmax(1) == labels).float().mean()) for _ in range(400)]
    inside = sum(low <= accuracy <= high for accuracy in single) / len(single)
    assert 0.88 < inside < 0.99
    assert f"{100 * result.randomness['one_pass']:.1f} % right" in str(result)


def test_gradients_are_averaged_over_draws_and_passes_are_counted() -> None:
    model = Noisy(0.05)
    data = images(model, 3)
    result = rlr.evaluate(model, data, PGD(eps=0.1, step_size=0.02, steps=4, eot=7), verdict_passes=5)
    for row in result.rows:
        assert row.forwards == 5 + 4 * 7 + 5
        assert row.backwards == 4 * 7
    seen: list[int] = []

    def linear(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model.linear(x.flatten(1))

    x, labels, _ = data.batch(torch.arange(3))
    attack = {"eps": 0.1, "step_size": 0.02, "steps": 3}
    plain = rlr.attacks.pgd_linf(linear, x, labels, **attack)
    assert len(seen) == 3
    assert torch.equal(rlr.attacks.pgd_linf(linear, x, labels, eot=4, **attack), plain)
    assert len(seen) == 3 + 3 * 4
    start = rlr.protocols.APGD(eps=0.1).starts(x, torch.arange(3), seed=0)
    options = {"eps": 0.1, "start": start, "steps": 5}
    torch.testing.assert_close(
        rlr.attacks.apgd(linear, x, labels, eot=4, **options), rlr.attacks.apgd(linear, x, labels, **options)
    )


def test_the_expectation_is_attacked_where_single_gradients_mislead() -> None:
    """Noise in the gradient far above the signal: the average of many draws breaks what single draws leave robust."""

    class Misleading(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            noise = 20 * torch.randn(flat.shape)
            return super().forward(x) + (noise * (flat - flat.detach())).sum(1)[:, None] * torch.tensor(
                [1.0, -1, 1, -1]
            )

    model = Misleading(0.0)
    data = images(model, 32)
    x, labels, _ = data.batch(torch.arange(len(data)))

    def broken(eot: int) -> int:
        torch.manual_seed(0)
        x_adv = rlr.attacks.pgd_linf(model, x, labels, eps=0.1, step_size=0.02, steps=10, eot=eot)
        with torch.no_grad():
            return int((model.linear(x_adv.flatten(1)).argmax(1) != labels).sum())

    assert broken(100) > broken(1)


@pytest.mark.parametrize("generator", ["torch", "numpy", "python", "own"])
@pytest.mark.parametrize("by_row", [True, False])
def test_how_a_model_draws_is_found_out(generator: str, by_row: bool) -> None:
    model = Noisy(0.2, by_row=by_row, generator=generator).eval()
    x = torch.rand((8, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    found = detect_randomness(model, x, x, torch.arange(8), 0)
    assert found is not None
    assert found.by_row == by_row
    assert found.keyed == (generator != "own")
    assert detect_randomness(Noisy(0.0), x, x, torch.arange(8), 0) is None


def test_draws_shared_by_a_pass_are_made_one_by_one() -> None:
    model = Noisy(0.3, by_row=False)
    result = rlr.evaluate(model, images(model), rand(eps=0.001), verdict_passes=10, **FREE)
    assert result.randomness is not None
    assert result.randomness["draws"] == "by pass"
    assert any(0 < (row.wrong_passes or 0) < 10 for row in result.rows)


def test_generators_are_restored() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with seed_generators(7):
        torch.rand(5), np.random.rand(5), random.random()
    assert (torch.rand(1), np.random.rand(), random.random()) == before


def test_an_evaluation_of_a_random_model_goes_on_after_an_interruption(tmp_path: Path) -> None:
    model = Noisy(0.05)
    data = images(model)
    whole = rlr.evaluate(model, data, rand(), verdict_passes=4, compute_batch=4)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise Stop

    options = {"verdict_passes": 4, "compute_batch": 4, "processes": 1, "out": tmp_path}
    with pytest.raises(Stop):
        rlr.evaluate(model, data, rand(), progress=stop, **options)
    result = rlr.evaluate(model, data, rand(), resume=True, **options)
    assert result.read_from_ledger > 0
    assert essentials(result) == essentials(whole)
    with pytest.raises(InputError, match="randomness"):
        rlr.evaluate(model, data, rand(), resume=True, **(options | {"verdict_passes": 5}))


def test_the_guard_names_the_way() -> None:
    model = Noisy(0.05)
    with pytest.raises(InputError, match="autoattack-rand"):
        rlr.evaluate(model, images(model), "madry-cifar10")
    square = rlr.protocols.Square(eps=0.03, queries=20)
    with_fab = Cascade(name="c", parts=(*rand().parts, rlr.protocols.FAB(eps=0.03)))
    with pytest.raises(InputError, match="autoattack-rand"):  # FAB follows gradients and averages nothing
        rlr.evaluate(model, images(model), with_fab)
    result = rlr.evaluate(model, images(model), Cascade(name="c", parts=(*rand().parts, square)), verdict_passes=3)
    assert result.randomness is not None


def test_eot_on_a_deterministic_model_warns_and_changes_nothing() -> None:
    model = Noisy(0.0)
    protocol = PGD(eps=0.03, step_size=0.01, steps=5)
    plain = rlr.evaluate(model, images(model), protocol, check="off")
    with pytest.warns(UserWarning, match="deterministic"):
        again = rlr.evaluate(model, images(model), replace(protocol, eot=9), check="off")
    assert essentials(again) == essentials(plain)
    assert again.randomness is None


@pytest.mark.parametrize(("eot", "message"), [(0, "eot = 0"), (1001, "at most 1000"), (1.5, "eot")])
def test_an_impossible_eot_is_refused(eot: int, message: str) -> None:
    for kind in (lambda: PGD(eps=0.1, step_size=0.1, steps=1, eot=eot), lambda: APGD(eps=0.1, eot=eot)):
        with pytest.raises(InputError, match=message):
            kind()
    with pytest.raises(InputError, match=message):
        rlr.attacks.pgd_linf(
            Noisy(0.0), torch.rand(1, 1, 4, 4), torch.tensor([0]), eps=0.1, step_size=0.1, steps=1, eot=eot
        )


@pytest.mark.parametrize("passes", [0, 1, 1001])
def test_an_impossible_number_of_verdict_passes_is_refused(passes: int) -> None:
    model = Noisy(0.05)
    with pytest.raises(InputError, match="verdict_passes"):
        rlr.evaluate(model, images(model), rand(), verdict_passes=passes)
