"""Networks of others are attacked with batch norm folded, where it is sure that nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation import session as prepared
from robust_lr.evaluation.guards import GUARDS
from robust_lr.models.layers.basic import Normalize
from robust_lr.models.traced_folding import count_norms, trace_and_fold
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import read


class Residual(nn.Module):
    """A block as others write it."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def network(block=Residual):
    torch.manual_seed(0)
    stem = [Normalize((0.5,), (0.25,)), nn.Conv2d(1, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*stem, block(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval().requires_grad_(False)


@pytest.fixture
def sample():
    return rlr.data.load("fashion-mnist-mini", "test").batch(torch.arange(8))[0]


def test_every_batch_norm_is_folded_and_the_network_left_as_it_was(sample):
    model = network()
    before = copy.deepcopy(model.state_dict())
    folded = trace_and_fold(model, sample)
    assert (count_norms(model), count_norms(folded)) == (3, 0)
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(folded(sample), model(sample))  # it is another arithmetic
    torch.testing.assert_close(folded(sample), model(sample), rtol=1e-4, atol=1e-5)
    logits = folded(sample)
    model[1].weight.zero_()
    assert torch.equal(folded(sample), logits)


def test_evaluations_use_it_and_judge_by_the_model_itself(tmp_path, monkeypatch):
    model, data = network().train(), rlr.data.load("fashion-mnist-mini", "test").take(64)
    used, make_attackable = [], prepared.make_attackable
    protocol = PGD(eps=8 / 255, step_size=2 / 255, steps=6, criterion="worst")
    before = copy.deepcopy(model.state_dict())
    for folder, attacked in (
        ("folded", lambda *arguments: used.append(make_attackable(*arguments)) or used[0]),
        ("whole", lambda model, sample: model),
    ):
        monkeypatch.setattr(prepared, "make_attackable", attacked)
        rlr.evaluate(model, data, protocol, out=tmp_path / folder, allow=tuple(GUARDS))
    assert count_norms(used[0]) == 0
    folded, whole = (read(tmp_path / folder / "ledger.sqlite") for folder in ("folded", "whole"))
    assert sum(row.robust != other.robust for row, other in zip(folded, whole, strict=True)) <= 1
    assert [row.clean_loss for row in folded] == [row.clean_loss for row in whole]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())


# what is attacked as it is


class Detached(Residual):
    """Its gradient ignores one branch: an attack on a copy that does not would be another attack."""

    def forward(self, x):
        with torch.no_grad():
            branch = self.bn1(self.conv1(x))
        return F.relu(x + self.bn2(self.conv2(branch)))


class Branching(Residual):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else x


class Noisy(Residual):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn(1))


class Twice(Residual):
    """One convolution before two batch norms."""

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)) + self.bn2(self.conv1(x)))


class Loud(Residual):
    def __deepcopy__(self, memo):
        raise RuntimeError("not to be copied")


@pytest.mark.parametrize("block", [Detached, Branching, Noisy, Twice, Loud])
def test_networks_that_tracing_would_change_are_left_alone(sample, block):
    assert trace_and_fold(network(block), sample) is None


def test_networks_with_hooks_are_left_alone(sample):
    model = network()
    handle = model[4].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert trace_and_fold(model, sample) is None
    handle.remove()
    assert trace_and_fold(model, sample) is not None


def test_nothing_is_copied_where_nothing_can_be_folded(sample):
    assert trace_and_fold(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), sample) is None
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    assert trace_and_fold(model, sample) is None
