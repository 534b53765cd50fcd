"""Each recipe's first step against a transcription of its source, on images and a network of the test's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_lr import config as config_room
from robust_lr.config.recipes import RECIPES
from robust_lr.config.sections import TrainConfig
from robust_lr.config.training import Config, load, set_value
from robust_lr.data.dataset import from_arrays
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import get
from robust_lr.training.adversary import Attacker
from robust_lr.training.loop import adversarial_train, left_clean
from robust_lr.training.schedule import attack_scale, peak_rate
from robust_lr.utils.errors import InputError
from robust_lr.utils.rng import CHOICE, START, integers, normal, uniform

CLASSES, N = 4, 8


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return from_arrays(
        torch.rand(N, 1, 12, 12, generator=generator), torch.arange(N) % CLASSES, ids=50 + torch.arange(N)
    )


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 144, CLASSES)
    return nn.Sequential(*layers)


class Batch:
    """The first batch, as every recipe meets it."""

    def __init__(self, data):
        from robust_lr.data.loader import shuffle_positions

        self.x, self.y, self.ids = data.batch(shuffle_positions(data, N, seed=3, epoch=0)[0])
        self.noise = 2 * uniform(3, START, self.ids, self.x.shape[1:]) - 1
        other = integers(3, 1, self.ids, CLASSES - 1)
        self.wrong = other + (other >= self.y).long()


def pgd(model, x, start, loss, eps, step, steps):
    """Descend ``loss`` from ``start`` by signs, in the ball and in [0, 1]."""
    model.eval()
    x_adv = start.clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x_adv)), x_adv)
        x_adv = x_adv.detach() - step * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    model.train()
    return x_adv.detach()


def summed(labels):
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def regular(model, b):
    return F.cross_entropy(model.train()(b.x), b.y)


def lrnet(model, b):
    x_adv = pgd(model, b.x, b.x + 16 / 255 * b.noise, summed(b.wrong), 16 / 255, 1 / 255, 16)
    return F.cross_entropy(model(x_adv), b.y)


def alp_release(model, b):
    model.eval()
    least = model(b.x).detach().scatter(1, b.y[:, None], torch.inf).argmin(1)
    x_adv = pgd(model, b.x, b.x + 16 / 255 * b.noise, summed(least), 16 / 255, 2 / 255, 10)
    half = torch.arange(N) % 2 == 1
    x_adv[half] = b.x[half]
    return F.cross_entropy(model(x_adv), b.y, label_smoothing=0.1)


def xie2019(model, b):
    clean = uniform(3, CHOICE, b.ids, (1,)).view(-1, 1, 1, 1) < 0.2
    assert 0 < clean.sum() < N
    start = torch.where(clean, b.x, b.x + 16 / 255 * b.noise)
    x_adv = pgd(model, b.x, start, summed(b.wrong), 16 / 255, 1 / 255, 30)
    return F.cross_entropy(model(x_adv), b.y, label_smoothing=0.1)


def madry(model, b):
    start = b.x + 8 / 255 * b.noise
    x_adv = pgd(model, b.x, start, lambda out: -summed(b.y)(out), 8 / 255, 2 / 255, 10)
    return F.cross_entropy(model(x_adv), b.y)


def trades(model, b):
    model.eval()
    p = model(b.x).softmax(1).detach()
    start = b.x + 0.001 * normal(3, START, b.ids, b.x.shape[1:])
    minus_kl = lambda out: -F.kl_div(out.log_softmax(1), p, reduction="sum")  # noqa: E731
    x_adv = pgd(model, b.x, start, minus_kl, 0.031, 0.007, 10)
    logits = model(b.x)
    kl = F.kl_div(model(x_adv).log_softmax(1), logits.softmax(1), reduction="sum") / N
    return F.cross_entropy(logits, b.y) + 6.0 * kl


def fast(model, b):
    delta = 8 / 255 * b.noise
    minus_ce = lambda out: -summed(b.y)(out)  # noqa: E731
    x_adv = pgd(model, b.x, b.x + delta, minus_ce, 8 / 255, 10 / 255, 1)
    return F.cross_entropy(model(x_adv), b.y)


SOURCES = {
    "regular": regular,
    "lrnet": lrnet,
    "alp-release": alp_release,
    "xie2019": xie2019,
    "madry": madry,
    "trades": trades,
    "fast": fast,
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_step_equals_that_of_the_source(data, name):
    config = load(None, [f"recipe={name}", "seed=3", f"train.batch_size={N}", "train.warmup_epochs=0", "train.lr=0.1"])
    ours, plain = network(), network()
    found = next(adversarial_train(ours, data, config))
    loss = SOURCES[name](plain, Batch(data))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    for (key, one), other in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-7), key


def test_the_transcriptions_differ_from_each_other(data):
    losses = [source(network(), Batch(data)).item() for source in SOURCES.values()]
    assert len({round(loss, 5) for loss in losses}) == len(losses)


def test_values_of_a_file_override_its_recipe():
    table = {"recipe": "alp-release", "train": {"mix": 0.25}, "attack": {"steps": 4}}
    config = config_room.from_dict(table)
    assert (config.train.mix, config.train.label_smoothing) == (0.25, 0.1)
    assert (config.attack.steps, config.attack.step_size, config.attack.target) == (4, 2 / 255, "least-likely")
    assert config.attack.name == "alp-train,steps=4"
    assert config_room.from_dict({"recipe": "alp-release"}).attack is get("alp-train")


def test_a_recipe_override_replaces_the_file_s_values():
    table = {"recipe": "fast", "train": {"mix": 0.25, "epochs": 7}, "attack": {"steps": 4}, "seed": 5}
    set_value(table, "recipe=madry")
    config = config_room.from_dict(table)
    assert (config.attack, config.train.mix, config.validation.images) == (get("madry-train"), 0.0, 0)
    assert (config.train.epochs, config.seed) == (7, 5)


def test_later_overrides_replace_values_of_a_recipe():
    after = load(None, ["recipe=xie2019", "train.label_smoothing=0.2", "attack.eps=8/255"])
    assert (after.train.label_smoothing, after.attack.eps, after.attack.steps) == (0.2, 8 / 255, 30)
    before = load(None, ["train.label_smoothing=0.2", "attack.eps=8/255", "recipe=xie2019"])
    assert (before.train.label_smoothing, before.attack) == (0.1, get("xie2019-train"))


def test_a_recipe_reaches_a_regime_of_a_table():
    table = {"adversarial": {"attack": {"protocol": "lrnet-train"}, "train": {"epochs": 2}}}
    set_value(table, "adversarial.recipe=alp-release")
    config = config_room.from_dict(table["adversarial"])
    assert (config.attack.name, config.train.mix, config.train.epochs) == ("alp-train", 0.5, 2)


def test_an_unknown_recipe_is_named():
    for table in ({"recipe": "madri"}, {"recipe": 3}):
        with pytest.raises(InputError, match=f"unknown recipe {table['recipe']!r}: .*choose one of regular, lrnet"):
            config_room.from_dict(table)
    with pytest.raises(InputError, match="did you mean 'trades'"):
        load(None, ["recipe=trade"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["recipe=trades", "train.mix=0.5"], "loss = 'trades' uses every image both clean and attacked"),
        (["recipe=trades", "attack.targeted=true"], "'trades' needs an untargeted attack: set attack.targeted"),
        (["train.loss=triplet"], "unknown loss 'triplet': .*choose one of cross-entropy, trades"),
        (["train.mix=1"], r"mix = 1.0: must be in \[0, 1\)"),
        (["train.clean_start=1.5"], r"clean_start = 1.5: must be in \[0, 1\]"),
        (["train.label_smoothing=-0.1"], r"label_smoothing = -0.1: must be in \[0, 1\)"),
        (["train.ema=1"], r"ema = 1.0: must be in \[0, 1\)"),
        (["train.eps_warmup_epochs=-1"], "eps_warmup_epochs = -1.0: must be at least 0"),
        (["train.lr_images=-1"], "lr_images = -1: must be at least 0"),
        (["validation.max_drop=0.2"], "max_drop = 0.2: needs held-out images; set validation.images"),
        (["validation.protocol=strong"], "unknown protocol 'strong'"),
        (["compute.micro_batch=1"], "micro_batch = 1: must be at least 2"),
        (["compute.precision=fp16"], "unknown precision 'fp16': .*choose one of fp32, bf16"),
        (["compute.attack_precision=half"], "unknown attack_precision 'half'"),
        (["compute.compile=fast"], "unknown choice for compute.compile 'fast'"),
        (["output.keep=0"], "keep = 0: must be at least 1"),
        (["data.unreadable=ignore"], "unknown choice for data.unreadable 'ignore'"),
    ],
)
def test_options_out_of_range_are_named(values, words):
    with pytest.raises(InputError, match=words):
        load(None, values)


def test_the_rate_is_scaled_only_on_request():
    assert peak_rate(TrainConfig(lr=0.1, batch_size=1024)) == 0.1
    assert peak_rate(TrainConfig(lr=0.1, batch_size=1024, lr_images=256)) == pytest.approx(0.4)


def test_the_attack_warms_up():
    train = TrainConfig(eps_warmup_epochs=2)
    assert [attack_scale(train, step, 4) for step in (0, 3, 6, 7, 8)] == pytest.approx([1 / 8, 1 / 2, 7 / 8, 1, 1])
    assert attack_scale(TrainConfig(), 0, 4) == 1
    model, x = network(), torch.rand(4, 1, 12, 12)
    attack = Attacker(model, Config(attack=PGD(eps=0.1, step_size=0.1, steps=2), train=train), CLASSES)
    for scale in (0.25, 0.5, 1.0):
        distance = (attack(x, torch.zeros(4, dtype=torch.int64), torch.arange(4), 0, scale) - x).abs().max()
        assert float(distance) == pytest.approx(0.1 * scale, abs=1e-6)


@pytest.mark.parametrize(("mix", "clean"), [(0.0, 0), (0.5, 4), (0.25, 2), (1 / 3, 2), (0.1, 0), (0.99, 7)])
def test_a_share_of_each_batch_is_left_clean(data, mix, clean):
    assert left_clean(TrainConfig(batch_size=N, mix=mix)).sum() == clean
    if not clean:
        return
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    attack = PGD(eps=0.1, step_size=0.1, steps=1)
    config = Config(seed=3, attack=attack, train=TrainConfig(epochs=1, batch_size=N, mix=mix))
    list(adversarial_train(model, data, config))
    untouched = (seen[0] == Batch(data).x).flatten(1).all(1)
    assert torch.equal(untouched, left_clean(config.train))
