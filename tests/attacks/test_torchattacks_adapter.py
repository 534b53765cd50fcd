import subprocess
import sys

import pytest
import torch

import robust_lr as rlr
from robust_lr import InputError, RunError
from robust_lr.attacks.torchattacks_adapter import torchattack

EPS = 8 / 255


@pytest.fixture
def model():
    torch.manual_seed(0)
    return rlr.build_model("resnet18", num_classes=5, in_channels=1, width=1 / 16).eval()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 16, 16, generator=g), torch.randint(5, (6,), generator=g)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PGD", {"eps": EPS, "alpha": 2 / 255, "steps": 3, "random_start": False}),
        ("APGD", {"eps": EPS, "steps": 3, "seed": 0}),
        ("MIFGSM", {"eps": EPS, "alpha": 2 / 255, "steps": 3}),
        ("Square", {"eps": EPS, "n_queries": 5, "seed": 0}),
        ("CW", {"steps": 2}),
        ("APGD", {"norm": "L2", "eps": 0.5, "steps": 3, "seed": 0}),
    ],
)
def test_attacks_keep_their_bounds_and_leave_the_model_alone(model, batch, name, values):
    x, labels = batch
    model.layer2.train()  # a frozen part, say: torchattacks alone would lose it
    modes = [m.training for m in model.modules()]
    x_adv = torchattack(name, model, x, labels, **values)
    assert x_adv.shape == x.shape
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_through_the_adapter_is_our_pgd(model, batch, targeted):
    x, labels = batch[0][:4], batch[1][:4]
    targets = (labels + 1) % 5
    ours = rlr.attacks.pgd_linf(
        model, x, targets if targeted else labels, eps=EPS, step_size=2 / 255, steps=4, targeted=targeted
    )
    values = {"eps": EPS, "alpha": 2 / 255, "steps": 4, "random_start": False}
    assert torch.equal(torchattack("PGD", model, x, labels, targets=targets if targeted else None, **values), ours)


def test_wrong_names_and_values_are_named(model, batch):
    with pytest.raises(InputError, match="unknown attack of torchattacks 'PDG'"):
        torchattack("PDG", model, *batch)
    with pytest.raises(InputError, match="stepz"):
        torchattack("PGD", model, *batch, stepz=3)
    with pytest.raises(InputError, match="DeepFool has no targeted mode"):
        torchattack("DeepFool", model, *batch, targets=batch[1])
    with pytest.raises(InputError, match="pixels must be in"):
        torchattack("PGD", model, 255 * batch[0], batch[1])


@pytest.mark.parametrize(("shift", "words"), [(0.2, "left the ball"), (2.0, "in \\[0, 1\\]"), (torch.nan, "finite")])
def test_an_attack_that_cheats_is_an_error(model, batch, monkeypatch, shift, words):
    import torchattacks

    monkeypatch.setattr(torchattacks.PGD, "forward", lambda self, x, y: x * 0.5 + shift)
    with pytest.raises(RunError, match=words):
        torchattack("PGD", model, *batch, eps=EPS)


def test_the_library_is_not_imported_before_it_is_used():
    code = "import robust_lr, sys; assert 'torchattacks' not in sys.modules and 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
