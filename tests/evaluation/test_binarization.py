import pytest
import torch
from zoo import BROKEN, networks

import robust_lr as rlr
from robust_lr.evaluation.binarization import binarize
from robust_lr.protocols.pgd import PGD
from robust_lr.utils.errors import InputError

ATTACK = PGD(eps=16 / 255, step_size=2 / 255, steps=20)


@pytest.fixture(autouse=True, scope="module")
def kept_weights(pytestconfig):
    networks.folder = pytestconfig.cache.mkdir("zoo")
    yield
    networks.folder = None


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(12)


def test_a_sound_attack_finds_the_examples_that_exist(data):
    for attack in (ATTACK, PGD(eps=1.0, step_size=0.1, steps=30, norm="l2")):
        found = binarize(networks.regular(), data, attack)
        assert found.tests >= 6
        assert found.check().passed


def test_a_misled_attack_misses_them(data):
    check = binarize(BROKEN["backwards"].broken(), data, ATTACK).check()
    assert check.passed is False
    assert check.advice


def test_tests_that_cannot_be_set_are_no_verdict(data):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * 0

    assert binarize(Constant(), data.take(2), ATTACK).check().passed is None
    with pytest.raises(InputError, match="ball"):
        binarize(networks.regular(), data, rlr.protocols.get("none"))
