"""Probes and verdicts on a selection of the zoo; `make zoo` runs all of it."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from zoo import BROKEN, networks
from zoo.honest import HONEST

import robust_lr as rlr
from robust_lr.evaluation import probes
from robust_lr.evaluation.fitted_surrogate import fitted_surrogate, surrogate_probes
from robust_lr.evaluation.probe_attacks import Ball, Victims, hardest_probes, stronger_probes
from robust_lr.evaluation.probe_groups import RANDOM_NOISE, Course, Group, Subject
from robust_lr.evaluation.probes import MISLEADING
from robust_lr.evaluation.structure import STRUCTURE, Specimen, run_structural_checks
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import Row
from robust_lr.results.verdict import DOMINATED, STRONGER
from robust_lr.utils import processes
from robust_lr.utils.errors import InputError

#: a gradient attack that is strong enough for small networks, in few passes
ATTACK = PGD(eps=16 / 255, step_size=4 / 255, steps=8, criterion="worst", loss="margin", name="short")

GOOD = Row(
    id=0, input_hash="ab", label=0, target=None, clean=0, adversarial=0, robust=True, robust_worst_seen=True,
    success=False, first_success=None, first_wrong=None, clean_loss=0.1, zero_gradients=0, margin=1.0, loss=0.5,
    distance=0.06, broken_by=None, record="", unconfirmed=0, steps_skipped=0, forwards=10, backwards=8, seconds=0.1,
)  # fmt: skip

#: defenses with a check of the structure that must fail on them and pass on their twin
SEEN = {
    "backwards": "the gradient predicts the margin",
    "counting": "the model keeps no state",
    "shared_memory": "same logits in another process",
    "grad_mode": "same logits with gradients",
    "partly_detached": "the gradient reaches all pixels",
    "keyed_by_hash": "logits are continuous",
    "decoy_gradients": "the gradient holds in all directions",
    "batch_off_the_grid": "same logits in another batch",
    "refusing": "logits are finite off the images",
    "anti_adversary": "no optimization at inference",
    "quantized_input": "logits respond to small changes",
}


@pytest.fixture(autouse=True, scope="module")
def kept_weights(pytestconfig):
    networks.folder = pytestconfig.cache.mkdir("zoo")
    yield
    networks.folder = None


@pytest.fixture(autouse=True)
def small_budget(monkeypatch):
    monkeypatch.setattr(probes, "SECONDS", 0.5)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(32)


def specimen(model, data):
    model = model.eval().requires_grad_(False)
    x, labels, ids = data.batch(torch.arange(12))
    noise = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1
    away = (x + 16 / 255 * noise).clamp(0, 1)
    return Specimen(
        fresh=lambda: copy.deepcopy(model), used=model, x=x, labels=labels, ids=ids, away=away, eps=16 / 255,
        resolution=2**-23, seed=0, forks=True,
    )  # fmt: skip


def test_every_check_of_the_structure_is_tested():
    assert set(SEEN.values()) == set(STRUCTURE)
    assert set(MISLEADING) < set(STRUCTURE)


@pytest.mark.parametrize("name", SEEN)
def test_each_check_fails_on_its_defense_and_passes_on_the_honest_twin(name, data):
    page = BROKEN[name]
    found = {check.name: check for check in run_structural_checks(specimen(page.broken(), data))}
    assert found[SEEN[name]].passed is False
    assert found[SEEN[name]].advice
    twin = run_structural_checks(specimen(page.twin(), data))
    assert [(check.name, check.found) for check in twin if check.passed is False] == []


@pytest.mark.parametrize("name", ["robust, contrast stretched", "robust, maxima", "robust, 8 bits"])
def test_maxima_of_equal_pixels_and_levels_of_8_bits_are_honest(name, data):
    """Neither has a derivative of its own at the images, and neither hides one in the ball."""
    found = run_structural_checks(specimen(HONEST[name](), data))
    assert [(check.name, check.found) for check in found if check.passed is False and check.name in MISLEADING] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["backwards", "sawtooth", "counting", "remembering", "snapping_off_the_grid", "saturated"]
)
def test_broken_defenses_are_flagged_by_a_default_evaluation(name, data):
    result = rlr.evaluate(BROKEN[name].broken(), data, "lrnet-untargeted", check="default")
    assert result.verdict in ("weak", "misled")
    assert result.inflation.value > 0.1
    assert result.bound < result.robust.value - 0.1
    assert result.judgment.advice


@pytest.mark.slow
def test_honest_networks_are_not_misled(data):
    for model in (networks.regular(), networks.trained("linear"), networks.trained("tanh")):
        result = rlr.evaluate(model, data, ATTACK, check="default")
        assert result.verdict in ("sound", "weak")
        assert result.verdict == "sound" or result.inflation.value > 0.02
        assert [check.name for check in result.validity if check.passed is False] == []


def test_noise_that_crosses_another_border_than_the_targets_does_not_mislead():
    """Targeted attacks move away from the near border, which an untargeted attack crosses: no gradient is masked."""

    class Opposite(nn.Module):
        def forward(self, x):
            along = (x - 0.5).flatten(1).sum(1)
            return torch.stack([0 * along, along - 0.01, -along - 10], 1)

    x = torch.full((8, 1, 2, 2), 0.5)
    victims = Victims(x, torch.arange(8), torch.zeros(8, dtype=torch.int64), torch.full((8,), 2))
    ball = Ball(0.1, "linf")
    subject = Subject(fresh=Opposite, attacked=Opposite, ball=ball, seed=0)
    stronger, hardest = stronger_probes(ball, 3, 0.25, True), hardest_probes(ball, 0.25)
    without = Course(stronger, ()).run(Group(subject, victims, {}))
    assert set(without.broken_by.values()) == {(RANDOM_NOISE, DOMINATED)}
    found = Course(stronger, (), hardest).run(Group(subject, victims, {}))
    assert set(found.broken_by.values()) == {("untargeted APGD, margin, 40 steps", STRONGER)}
    assert found.broken_by.keys() == without.broken_by.keys()


@pytest.mark.slow
def test_the_verdict_depends_neither_on_batch_size_nor_on_resuming(data, tmp_path):
    page, data = BROKEN["decoy_gradients"], data.take(16)
    whole = rlr.evaluate(page.broken(), data, ATTACK, check="default")
    small = rlr.evaluate(page.broken(), data, ATTACK, check="default", batch_size=1)
    assert whole.judgment == small.judgment

    class Interrupted(Exception):
        pass

    def stop(done, total):
        if done:
            raise Interrupted

    with pytest.raises(Interrupted):
        rlr.evaluate(page.broken(), data, ATTACK, check="default", out=tmp_path / "run", compute_batch=8, progress=stop)
    resumed = rlr.evaluate(
        page.broken(), data, ATTACK, check="default", out=tmp_path / "run", compute_batch=8, resume=True
    )
    again = rlr.evaluate(
        page.broken(), data, ATTACK, check="default", out=tmp_path / "run", compute_batch=8, resume=True
    )
    assert resumed.verdict == whole.verdict == "misled"
    assert again.judgment == resumed.judgment
    assert again.read_from_ledger == 16
    assert again.origin == resumed.origin
    assert again.origin["date"]


@pytest.mark.slow
def test_the_verdict_does_not_depend_on_processes(data, monkeypatch):
    if not processes.can_fork():
        pytest.skip("no forks here")
    for name in ("decoy_gradients", "leaky_rounding"):
        one, two = (rlr.evaluate(BROKEN[name].broken(), data, ATTACK, check="default", processes=n) for n in (1, 2))
        assert one.judgment == two.judgment
        assert one.probes.broken == two.probes.broken
        assert one.probes.passes == two.probes.passes


def test_probes_go_on_with_more_images_only_while_the_verdict_is_open(monkeypatch):
    """Few images decide where many of them break, or none of the first."""
    asked = []
    monkeypatch.setattr(probes.Hunt, "attack_by_surrogate", lambda hunt: None)
    monkeypatch.setattr(probes.Hunt, "attack_longer", lambda hunt, course: None)
    for broken, expected in ((0, [64]), (2, [64, 136]), (40, [64])):
        asked.clear()

        def attack(hunt, rows, course, broken=broken):
            asked.append(len(rows))
            hunt.found.broken_by.update({row.id: ("some", "stronger") for row in rows[:broken]})
            hunt.sample += rows

        monkeypatch.setattr(probes.Hunt, "attack", attack)
        monkeypatch.setattr(probes.Hunt, "plan", lambda hunt, scales, few: probes.Plan(None, 200))
        rows = [dataclasses.replace(GOOD, id=i) for i in range(400)]
        hunt = probes.Hunt(None, None, rows, rows, 10, ATTACK, 1e9, 0)
        hunt.run((1.0,), None)
        assert asked == expected


def test_a_fitted_surrogate_transfers_to_a_network_that_shows_no_gradients(data):
    """The last resort: predictions alone lead an attack to images that the model gets wrong."""
    net = networks.regular()

    class Hidden(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return hidden[0](x)

    hidden = [net]
    images = rlr.data.load("fashion-mnist-mini", "test").take(256)
    x, labels, ids = images.batch(torch.arange(256))
    subject = Subject(fresh=Hidden, attacked=Hidden, ball=Ball(32 / 255, "linf"), seed=0)
    victims = Victims(x, ids, labels, None)
    fitted, passes = fitted_surrogate(subject, victims, 10)
    assert passes == 4 * 256
    right = (net(x).argmax(1) == labels).nonzero()[:, 0][:64]
    group = Group(subject, victims.select(right), {})
    group.attack(surrogate_probes(fitted, subject.ball))
    assert len(group.found.broken_by) >= 8
    again, _ = fitted_surrogate(subject, victims, 10)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), again.parameters(), strict=True))


def test_no_check_leaves_the_verdict_out_and_protocols_without_eps_have_none(data):
    assert rlr.evaluate(networks.regular(), data, ATTACK, check="off").verdict is None
    assert rlr.evaluate(networks.regular(), data, "none", check="default").verdict is None
    with pytest.raises(InputError, match="check"):
        rlr.evaluate(networks.regular(), data, ATTACK, check="deep")


def test_a_changed_model_does_not_get_the_old_number_back(data, tmp_path):
    model = networks.regular()
    rlr.evaluate(model, data, ATTACK, out=tmp_path)

    class Negative(nn.Sequential):  # the same weights and the same words in print
        def forward(self, x):
            return -super().forward(x)

        def _get_name(self):
            return "Sequential"

    changed = Negative(*copy.deepcopy(model))
    with pytest.raises(InputError, match="logits have changed since it began"):
        rlr.evaluate(changed, data, ATTACK, out=tmp_path, resume=True, name="Sequential")


def test_probes_cost_little(data):
    """A nominal budget of half a second allows few passes, whatever the number of images."""
    kept = probes.seconds_of_a_pass(networks.regular(), data.batch(torch.arange(8))[0])
    assert 1e-6 < kept < 1e-3
