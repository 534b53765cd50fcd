import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.evaluation.sanity import as_untargeted_pgd, sanity
from robust_lr.protocols import Cascade, Square
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import PROTOCOLS, SWEEPS
from robust_lr.results.images import read_images
from robust_lr.results.ledger import Row
from robust_lr.results.validity import CHECKS, validity
from robust_lr.utils.errors import InputError

WEAK = PGD(eps=16 / 255, step_size=4 / 255, steps=8)
EARLY = dataclasses.replace(WEAK, criterion="worst")
LONG = dataclasses.replace(WEAK, steps=24)
GOOD = Row(
    id=0, input_hash="ab", label=0, target=None, clean=0, adversarial=0, robust=True, robust_worst_seen=True,
    success=False, first_success=None, first_wrong=None, clean_loss=0.1, zero_gradients=0, margin=1.0, loss=0.5,
    distance=0.06, broken_by=None, record="", unconfirmed=0, steps_skipped=0, forwards=10, backwards=8, seconds=0.1,
)  # fmt: skip


def rows(n=100, changed=0, **values):
    """Rows without a fault, of two classes; some of them changed."""
    out = []
    for i in range(n):
        label = i % 2
        row = dataclasses.replace(GOOD, id=i, label=label, clean=label, adversarial=label)
        out.append(dataclasses.replace(row, **values) if i < changed else row)
    return out


def failed(rows, protocol=WEAK):
    return [check.name for check in validity(rows, protocol) if check.passed is False]


def test_rows_without_a_fault_pass_every_check():
    for protocol, unseen in ((WEAK, "successes are confirmed"), (EARLY, "successes are kept")):
        checks = validity(rows(), protocol)
        assert [check.name for check in checks] == list(CHECKS)
        not_seen = {unseen, "black box adds little"}
        assert all(check.passed for check in checks if check.name not in not_seen)
        assert {check.name for check in checks if check.passed is None} == not_seen


@pytest.mark.parametrize(("broken", "passed"), [(2, True), (3, False)])
def test_a_black_box_after_gradients_must_add_little(broken, passed):
    cascade = Cascade(
        parts=(PGD(eps=0.1, step_size=0.1, steps=1, criterion="worst", name="pgd"), Square(eps=0.1, name="square"))
    )
    checks = {check.name: check for check in validity(rows(1000, broken, broken_by="square", robust=False), cascade)}
    assert checks["black box adds little"].passed is passed


@pytest.mark.parametrize(
    ("name", "values", "few", "many"),
    [
        ("clean accuracy above chance", {"clean": 7, "robust": False}, 39, 41),
        ("gradients are not zero", {"zero_gradients": 4}, 2, 3),
        ("the loss rises", {"loss": 0.1}, 9, 11),
        ("successes are kept", {"robust_worst_seen": False}, 2, 3),
        ("successes are confirmed", {"unconfirmed": 3}, 2, 3),
        ("robust accuracy below clean", {"clean": 7}, 10, 11),
    ],
)
def test_each_fault_fails_exactly_its_check(name, values, few, many):
    protocol = EARLY if "unconfirmed" in values else WEAK
    assert failed(rows(changed=few, **values), protocol) == []
    assert failed(rows(changed=many, **values), protocol) == [name]


TARGETED = {"target": 2, "clean_target_loss": 5.0, "target_loss": 1.0}


def test_a_targeted_attack_is_judged_by_the_loss_of_its_target():
    protocol = dataclasses.replace(WEAK, targeted=True)
    good = [dataclasses.replace(row, **TARGETED) for row in rows()]
    sunk = [dataclasses.replace(row, loss=row.clean_loss / 2) for row in good]  # the true class's loss fell everywhere
    assert failed(sunk, protocol) == []
    for stuck, names in ((9, []), (11, ["the loss rises"])):
        some = [dataclasses.replace(row, target_loss=5.0) if row.id < stuck else row for row in good]
        assert failed(some, protocol) == names
    [check] = [check for check in validity(sunk, protocol) if check.name == "the loss rises"]
    assert check.found == "the target's loss fell for 100 of 100 images"


def test_one_image_of_few_is_not_a_failure():
    for values in ({"zero_gradients": 4}, {"loss": 0.1}, {"robust_worst_seen": False}):
        assert failed(rows(n=40, changed=1, **values)) == []


def test_an_accuracy_at_chance_does_not_pass():
    ten = [dataclasses.replace(row, label=row.id % 10, clean=row.id % 10) for row in rows(100)]
    for right, passed in ((13, False), (30, True)):
        some = [dataclasses.replace(row, clean=row.clean if row.id < right else -1, robust=False) for row in ten]
        check = next(check for check in validity(some, WEAK) if check.name == "clean accuracy above chance")
        assert check.passed is passed
        assert check.found == f"{right} of 100 clean images are classified correctly, 10 classes"
        assert bool(check.advice) is not passed


def test_checks_without_evidence_neither_pass_nor_fail():
    still = rows(changed=100, backwards=0, distance=0.0, label=0, clean=0, adversarial=0)
    unseen = {check.name for check in validity(still, PROTOCOLS["none"]) if check.passed is None}
    assert unseen == set(CHECKS) - {"successes are kept", "robust accuracy below clean"}


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(64)


@pytest.fixture(scope="module")
def trained():
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(1000))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


class Backwards(nn.Module):
    """The same logits, with a gradient that points the wrong way."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(2 * x.detach() - x)


class Random(nn.Module):
    """Logits with noise: what one pass shows the next need not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits + logits.detach().std() * torch.randn_like(logits)


class Dead(nn.Module):
    """The same logits; bright images have no gradient, which is half of them."""

    def __init__(self, model, level):
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x):
        bright = x.detach().mean((1, 2, 3), keepdim=True) > self.level
        return self.model(torch.where(bright, x.detach(), x))


def test_a_result_has_its_validity_checks(model, data, tmp_path):
    result = rlr.evaluate(model, data, LONG, out=tmp_path / "good")
    assert [check.passed for check in result.validity] == [True] * 4 + [None, None, True]
    record = json.loads((tmp_path / "good" / "result.json").read_text())
    assert record["validity"] == [dataclasses.asdict(check) for check in result.validity]
    for broken, names in {
        Backwards(model): ["the loss rises"],
        Dead(model, data.batch(torch.arange(64))[0].mean((1, 2, 3)).quantile(0.7)): ["gradients are not zero"],
    }.items():
        result = rlr.evaluate(broken, data, dataclasses.replace(WEAK, start="clean"))
        found = [check.name for check in result.validity if check.passed is False]
        assert found[: len(names)] == names
    many = rlr.data.load("fashion-mnist-mini", "test").take(256)  # noise hides all but a few successes of few images
    torch.manual_seed(0)
    for watched, passed in ((model, True), (Random(model), False)):
        checks = rlr.evaluate(watched, many, EARLY, allow=["deterministic", "batch"]).validity
        assert {check.name: check.passed for check in checks}["successes are confirmed"] is passed


@pytest.mark.parametrize("criterion", ["last", "worst"])
def test_the_ledger_has_the_losses_of_the_targets(model, data, criterion, tmp_path):
    protocol = dataclasses.replace(WEAK, criterion=criterion, targeted=True)
    result = rlr.evaluate(model, data, protocol, out=tmp_path, images=True)
    x, _, ids = data.batch(torch.arange(len(data)))
    assert [row.id for row in result.rows] == ids.tolist()
    target = torch.tensor([row.target for row in result.rows])
    (saved,) = read_images(tmp_path)
    for images, field in ((x, "clean_target_loss"), (saved.float32, "target_loss")):
        losses = torch.tensor([getattr(row, field) for row in result.rows])
        torch.testing.assert_close(losses, F.cross_entropy(model(images), target, reduction="none").detach())
    untargeted = rlr.evaluate(model, data, WEAK)
    assert {(row.clean_target_loss, row.target_loss) for row in untargeted.rows} == {(None, None)}


def test_a_targeted_attack_that_goes_backwards_is_found(model, data):
    protocol = dataclasses.replace(WEAK, targeted=True, start="clean")
    for network, passed in ((model, True), (Backwards(model), False)):
        checks = rlr.evaluate(network, data, protocol).validity
        assert {check.name: check.passed for check in checks}["the loss rises"] is passed


def test_sanity_passes_an_honest_model(model, data):
    seen = []
    checks = sanity(model, data, LONG, progress=lambda *now: seen.append(now))
    assert [check.name for check in checks if not check.passed] == []
    assert seen == [(i + 1, 8) for i in range(8)]
    l2 = PGD(norm="l2", eps=1.0, step_size=0.1, steps=100)
    assert [check.name for check in sanity(model, data, l2) if not check.passed] == []


def test_sanity_finds_gradients_that_are_masked(model, data):
    failed = {check.name for check in sanity(Backwards(model), data, WEAK) if not check.passed}
    assert {"eps of 255/255 breaks most images", "stronger than black box"} <= failed


def test_sanity_finds_an_attack_of_too_few_steps(model, data):
    weak = PGD(eps=16 / 255, step_size=1 / 255, steps=2, start="clean")
    failed = {check.name for check in sanity(model, data, weak) if not check.passed}
    assert "stronger than one step" in failed


def test_sanity_stands_for_every_protocol(model, data):
    with pytest.raises(InputError, match="eps = 0: there is nothing to check"):
        sanity(model, data, "none")
    others = [p for p in PROTOCOLS.values() if p.norm not in ("linf", "l2")]
    for protocol in others:
        with pytest.raises(
            InputError, match=f"{protocol.name!r} has norm {protocol.norm!r}: only attacks in linf or l2"
        ):
            sanity(model, data, protocol)
    for protocol in (p for p in PROTOCOLS.values() if p.name != "none" and p not in others):
        base = as_untargeted_pgd(protocol)
        assert (base.eps, base.norm, base.criterion, base.targeted) == (protocol.eps, protocol.norm, "worst", False)
    assert SWEEPS


def test_the_command_prints_a_verdict_and_fails_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Wrong(nn.Linear):\n    def __init__(self):\n"
        "        torch.manual_seed(0)\n        super().__init__(784, 10)\n    def forward(self, x):\n"
        "        return super().forward((2 * x.detach() - x).flatten(1))\n"
    )
    arguments = ["check", "--model", "nets.py:Wrong", "--data", "fashion-mnist-mini", "--limit", "16", "--threads", "1"]
    result = CliRunner().invoke(main, [*arguments, "--allow", "normalization"], env={"COLUMNS": "100"})
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "misled" in result.output
    assert "unconstrained attack failure" in result.output
    assert CliRunner().invoke(main, [*arguments, "--protocol", "none"]).exit_code == 2
