import copy
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robust_lr import data as data_room
from robust_lr.attacks.targets import uniform as uniform_targets
from robust_lr.config.sections import DataConfig, TrainConfig
from robust_lr.config.training import Config
from robust_lr.data.augmentation import AUGMENTATIONS, TRANSFORMS
from robust_lr.data.dataset import ArrayDataset, from_arrays
from robust_lr.data.encoded import pixels
from robust_lr.data.loader import Batches, batches, shuffle_positions, stream
from robust_lr.models.build import build_model
from robust_lr.models.folding import fold
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import get
from robust_lr.training.adversary import Attacker
from robust_lr.training.loop import adversarial_train, make_optimizer
from robust_lr.training.schedule import learning_rate
from robust_lr.utils.errors import InputError, RunError
from robust_lr.utils.rng import START, uniform

PGD3 = PGD(eps=16 / 255, step_size=4 / 255, steps=3, targeted=True)
fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # how workers start is PyTorch's business


def pictures(n=24, classes=4, size=12, seed=0):
    """Noise with a bright row that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = 0.5 * torch.rand(n, 1, size, size, generator=generator)
    images[torch.arange(n), 0, 2 * labels] += 0.5
    return from_arrays(images, labels, ids=1000 + 7 * torch.arange(n))


def settings(attack=PGD3, augment="none", seed=3, **train):
    schedule = {"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup_epochs": 1, "milestones": (1,)}
    return Config(
        seed=seed, data=DataConfig(augment=augment), attack=attack, train=TrainConfig(**{**schedule, **train})
    )


def network(name="resnet18"):
    torch.manual_seed(0)
    return build_model(name, num_classes=4, in_channels=1, width=1 / 16, stem="small")


def foreign():
    """A user's own network, with batch norm and mixed flags."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 144, 4)
    return nn.Sequential(*layers)


def everything(model):
    """All that an attack could disturb, by name."""
    return {
        **model.state_dict(),
        **{f"{name}.grad": p.grad for name, p in model.named_parameters()},
        **{f"{name}.requires_grad": p.requires_grad for name, p in model.named_parameters()},
        **{f"{name}.training": m.training for name, m in model.named_modules()},
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


# The schedule


def test_learning_rate_follows_the_schedule_step_by_step():
    train = TrainConfig(lr=0.8, warmup_epochs=2, milestones=(3, 5))
    table = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8] + [0.8] * 4 + [0.08] * 8 + [0.008] * 4  # 4 steps an epoch
    assert [learning_rate(train, step, 4) for step in range(24)] == pytest.approx(table, rel=1e-12)


def test_learning_rate_falls_linearly_to_zero_after_the_warm_up():
    train = TrainConfig(epochs=3, lr=0.8, warmup_epochs=1, schedule="linear")
    rates = [learning_rate(train, step, 4) for step in range(12)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *(0.8 * (12 - step) / 9 for step in range(4, 12))], rel=1e-12)
    at_once = TrainConfig(epochs=1, lr=0.5, warmup_epochs=0, schedule="linear", milestones=(1,))
    assert [learning_rate(at_once, step, 5) for step in (0, 4)] == pytest.approx([0.5, 0.1])


def test_learning_rate_of_the_paper():
    train = TrainConfig()
    per_epoch = 1251
    table = {0: 0.4 / 6255, 6254: 0.4, 30 * per_epoch - 1: 0.4, 30 * per_epoch: 0.04, 60 * per_epoch: 0.004}
    table |= {90 * per_epoch - 1: 0.004, 90 * per_epoch: 0.0004, 110 * per_epoch - 1: 0.0004}
    for step, rate in table.items():
        assert learning_rate(train, step, per_epoch) == pytest.approx(rate, rel=1e-9)


def test_learning_rate_without_or_with_a_broken_warm_up():
    assert learning_rate(TrainConfig(lr=0.5, warmup_epochs=0), 0, 10) == 0.5
    assert learning_rate(TrainConfig(lr=0.5, warmup_epochs=0.5), 0, 10) == pytest.approx(0.1)
    assert learning_rate(TrainConfig(lr=0.5, warmup_epochs=0.5), 4, 10) == 0.5
    assert learning_rate(TrainConfig(lr=0.5, warmup_epochs=0.45), 4, 10) == 0.5


# Augmentation


@pytest.mark.parametrize("name", ["none", "flip", "flip-crop"])
def test_augmentation_is_keyed_by_seed_epoch_and_id_not_by_the_batch(name):
    augment = AUGMENTATIONS[name]
    images, ids = torch.rand(40, 3, 16, 24), torch.arange(40) * 13
    whole = augment(images, ids, 5, 2)
    assert whole.shape == images.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = torch.randperm(40)
    assert torch.equal(augment(images[order], ids[order], 5, 2), whole[order])
    assert torch.equal(torch.cat([augment(images[:7], ids[:7], 5, 2), augment(images[7:], ids[7:], 5, 2)]), whole)
    for other in (augment(images, ids, 5, 3), augment(images, ids, 6, 2), augment(images, ids + 1, 5, 2)):
        assert torch.equal(other, whole) == (name == "none")


def test_flip_mirrors_about_half_of_the_images():
    images = torch.rand(1000, 1, 2, 3)
    out = AUGMENTATIONS["flip"](images, torch.arange(1000), 0, 0)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) != mirrored).all()
    assert 440 < mirrored.sum() < 560


def test_flip_crop_shifts_by_up_to_an_eighth_and_fills_with_zeros():
    n, pad_h, pad_w = 600, 2, 1
    images = 0.1 + 0.9 * torch.rand(n, 1, 16, 8)
    out = AUGMENTATIONS["flip-crop"](images, torch.arange(n), 0, 1)
    padded = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
    flipped = F.pad(images.flip(3), (pad_w, pad_w, pad_h, pad_h))
    found = torch.zeros(2, 5, 3, dtype=torch.int64)
    for mirror, source in enumerate((padded, flipped)):
        for dy in range(5):
            for dx in range(3):
                same = (out == source[:, :, dy : dy + 16, dx : dx + 8]).flatten(1).all(1)
                found[mirror, dy, dx] = same.sum()
    assert found.sum() == n  # each image is exactly one of the thirty
    assert found.min() > 5  # and each of the thirty occurs: expected 20


# Loading


@pytest.fixture
def folder(tmp_path):
    """Twelve color pictures of different sizes, in two classes."""
    generator = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def test_every_epoch_takes_each_image_once_in_a_new_order():
    data = pictures(24)
    orders = [torch.cat(shuffle_positions(data, 8, seed=1, epoch=epoch)) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(24))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], torch.arange(24))
    assert torch.equal(orders[2], torch.cat(shuffle_positions(data, 6, seed=1, epoch=2)))
    assert not torch.equal(orders[0], torch.cat(shuffle_positions(data, 8, seed=2, epoch=0)))


def test_an_incomplete_last_batch_is_dropped():
    assert [len(batch) for batch in shuffle_positions(pictures(24), 7, seed=0, epoch=0)] == [7, 7, 7]


def test_the_order_is_keyed_by_ids():
    data = pictures(24)
    turned = data.subset(torch.arange(23, -1, -1))
    one, other = (torch.cat(shuffle_positions(d, 8, seed=1, epoch=0)) for d in (data, turned))
    assert torch.equal(data.ids[one], turned.ids[other])


@fork
def test_workers_make_the_same_batches():
    data = pictures(20)
    order = shuffle_positions(data, 6, seed=0, epoch=0)
    for one, other in zip(batches(data, order), batches(data, order, workers=2), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine, theirs)


@fork
def test_workers_send_images_as_uint8(folder):
    files = data_room.load(f"folder:{folder}", transform=TRANSFORMS["imagenet"])
    memory = from_arrays(files.batch(torch.arange(12))[0], files.labels)
    sent = [Batches(data, seed)[torch.arange(3), 0][0] for data, seed in ((files, None), (files, 1), (memory, None))]
    assert [images.dtype for images in sent] == [torch.uint8, torch.uint8, torch.float32]


@fork
@pytest.mark.parametrize("workers", [0, 1])
def test_files_and_arrays_train_to_the_same_bits(folder, workers):
    files = data_room.load(f"folder:{folder}", transform=lambda image: pixels(image.resize((12, 12))))
    memory = from_arrays(files.batch(torch.arange(12))[0], files.labels)
    results = []
    for data in (memory, files):
        config = settings(epochs=1, batch_size=4, augment="flip-crop")
        config = replace(config, data=replace(config.data, workers=workers if data is files else 0))
        torch.manual_seed(0)
        model = build_model("resnet18", num_classes=files.num_classes, width=1 / 16, stem="small")
        state = torch.get_rng_state()
        losses = [step.loss for step in adversarial_train(model, data, config)]
        assert torch.equal(torch.get_rng_state(), state)  # of whatever the loader draws
        results.append((losses, model.state_dict()))
    (losses, mine), (others, theirs) = results
    assert losses == others
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_loading_with_random_crops_leaves_the_generator_alone(folder):
    state = torch.get_rng_state()
    data_room.load(f"folder:{folder}", transform=TRANSFORMS["imagenet"])
    assert torch.equal(torch.get_rng_state(), state)


@fork
def test_random_crops_are_keyed_by_seed_epoch_and_id(folder):
    data = data_room.load(f"folder:{folder}", "train", transform=TRANSFORMS["imagenet"])
    order = list(torch.arange(12).split(4))
    state = torch.get_rng_state()

    def made(order, seed, epoch, workers=0):
        return torch.cat([x for x, _, _ in stream(data, [(p, epoch) for p in order], seed=seed, workers=workers)])

    first = made(order, 3, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (12, 3, 224, 224)
    assert first.min() >= 0
    assert first.max() <= 1
    turned = list(torch.arange(11, -1, -1).split(3))
    assert torch.equal(made(turned, 3, 1, workers=2).flip(0), first)
    for seed, epoch in ((3, 2), (4, 1)):
        assert not (made(order, seed, epoch) == first).flatten(1).all(1).any()


@fork
@pytest.mark.parametrize("seed", [None, 0])
def test_an_unreadable_image_in_a_worker_is_one_clear_line(folder, seed):
    data = data_room.load(f"folder:{folder}", "train", transform=TRANSFORMS["imagenet"])
    (folder / "b" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png cannot be read as an image") as caught:
        list(stream(data, [(positions, 0) for positions in torch.arange(12).split(4)], workers=2, seed=seed))
    assert "\n" not in str(caught.value)


class Deadly(ArrayDataset):
    def _pixels(self, indices):
        os.kill(os.getpid(), signal.SIGKILL)


@fork
def test_a_worker_that_dies_is_one_clear_line():
    data = Deadly(**vars(pictures()))
    with pytest.raises(RunError, match="a process that loads images failed") as caught:
        list(batches(data, [torch.arange(4)], workers=1))
    assert "\n" not in str(caught.value)


def test_workers_cannot_be_negative():
    with pytest.raises(InputError, match="workers = -1: must be at least 0"):
        next(batches(pictures(), [torch.arange(4)], workers=-1))


# Training


@pytest.mark.parametrize("make", [network, foreign])
def test_regular_training_is_plain_sgd(make):
    data, config = pictures(), settings(get("none"))
    ours, plain = make(), make()
    metrics = []
    for step in adversarial_train(ours, data, config):
        metrics.append(step)
        ours.eval()  # as somebody may who looks at it between two steps
    ours.train()

    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    rates = [0.05 / 3, 0.1 / 3, 0.05, 0.005, 0.005, 0.005]
    losses = []
    for epoch in range(2):
        for positions in shuffle_positions(data, 8, seed=3, epoch=epoch):
            x, y, _ = data.batch(positions)
            optimizer.param_groups[0]["lr"] = rates[len(losses)]
            loss = F.cross_entropy(plain(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    assert [m.loss for m in metrics] == losses
    assert_same(everything(ours), everything(plain))
    assert [m.lr for m in metrics] == pytest.approx(rates)
    assert [m.step for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert [m.epoch for m in metrics] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert {(m.steps, m.images) for m in metrics} == {(6, 8)}


def test_adversarial_training_follows_the_recipe():
    """Targeted PGD from a random start in eval mode, then a step in train mode; redrawn in the second epoch."""
    data, attack = pictures(8), get("lrnet-train")
    ours, plain = foreign(), foreign()
    metrics = list(adversarial_train(ours, data, settings(attack, warmup_epochs=0, milestones=())))
    optimizer = make_optimizer(plain, settings().train)
    for epoch, found in enumerate(metrics):
        x, y, ids = data.batch(shuffle_positions(data, 8, seed=3, epoch=epoch)[0])
        targets = uniform_targets(y, ids, 4, seed=3, draw=epoch)
        x_adv = (x + 16 / 255 * (2 * uniform(3, START, ids, x.shape[1:], epoch) - 1)).clamp(0, 1)
        plain.eval()
        for _ in range(16):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(plain(x_adv), targets, reduction="sum"), x_adv)
            x_adv = x_adv.detach() - 1 / 255 * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-16 / 255, 16 / 255)).clamp(0, 1)
        plain.train()
        loss = F.cross_entropy(plain(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert found.loss == loss.item()
    assert len(metrics) == 2
    assert_same(everything(ours), everything(plain))


@pytest.mark.parametrize("name", ["resnet18", "lrnet26"])
def test_an_attacked_step_is_a_step_on_the_adversarial_images_and_nothing_else(name):
    data, config = pictures(8), settings(epochs=1)
    attacked, given = network(name), network(name)
    found = list(adversarial_train(attacked, data, config))

    x, y, ids = data.batch(shuffle_positions(data, 8, seed=3, epoch=0)[0])
    folded = fold(given)
    goals = PGD3.goals(folded, x, y, ids, 4, seed=3)
    x_adv = PGD3.perturb(folded, x, y, goals, ids, seed=3)
    assert 0 < (x_adv - x).abs().max() <= 16 / 255 + 1e-6
    optimizer = make_optimizer(given, config.train)
    given.train()
    loss = F.cross_entropy(given(x_adv), y)
    loss.backward()
    optimizer.step()
    assert found[0].loss == loss.item()
    assert_same(everything(attacked), everything(given))


@pytest.mark.parametrize("protocol", [PGD3, replace(PGD3, target="least-likely"), replace(PGD3, steps=0)])
@pytest.mark.parametrize("make", [network, foreign])
def test_an_attack_leaves_the_network_unchanged(make, protocol):
    model = make().train()
    model.get_submodule("bn1" if hasattr(model, "bn1") else "1").eval()  # a frozen batch norm stays frozen
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    last = list(model.parameters())[-1]
    last.requires_grad_(False)
    before = copy.deepcopy(everything(model))
    state = torch.get_rng_state()
    x, y, ids = pictures(8).batch(torch.arange(8))
    x_adv = Attacker(model, settings(protocol, seed=0), 4)(x, y, ids, 0)
    assert not torch.equal(x_adv, x)
    assert_same(everything(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x_adv.requires_grad


def test_the_attack_sees_a_frozen_network_in_eval_mode():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = foreign()

        def forward(self, x):
            flags = {p.requires_grad for p in self.parameters()}
            seen.append((self.inner[1].training, flags))
            return self.inner(x)

    list(adversarial_train(Spy(), pictures(8), settings(epochs=1)))
    assert seen == [(False, {False})] * 3 + [(True, {True})]


def test_the_attack_follows_the_weights():
    model = network()
    attacker = Attacker(model, settings(seed=0), 4)
    x, y, ids = pictures(8).batch(torch.arange(8))
    before = attacker(x, y, ids, 0)
    with torch.no_grad():
        model.fc.weight.neg_()
    assert torch.equal(attacker(x, y, ids, 0), Attacker(model, settings(seed=0), 4)(x, y, ids, 0))
    assert not torch.equal(attacker(x, y, ids, 0), before)


@pytest.mark.parametrize("attack", [get("none"), replace(PGD3, eps=2 / 255, step_size=1 / 255)])
def test_training_learns(attack):
    config = settings(attack, epochs=6, batch_size=16, milestones=())
    metrics = list(adversarial_train(network(), pictures(96), config))
    assert metrics[0].loss > 1.2  # log 4 = 1.39
    assert metrics[-1].loss < 0.5
    assert metrics[-1].accuracy > 0.9


def test_training_uses_the_augmented_images():
    seen = []
    model = foreign()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    data = pictures(8)
    list(adversarial_train(model, data, settings(get("none"), augment="flip-crop", epochs=1)))
    x, _, ids = data.batch(shuffle_positions(data, 8, seed=3, epoch=0)[0])
    assert torch.equal(seen[0], AUGMENTATIONS["flip-crop"](x, ids, 3, 0))


@fork
def test_starting_at_a_step_continues_the_training():
    data, config = pictures(), settings(augment="flip-crop")
    straight = network()
    list(adversarial_train(straight, data, config))
    for stop in (1, 3, 4):
        model = network()
        optimizer = make_optimizer(model, config.train)
        for step in adversarial_train(model, data, config, optimizer=optimizer):
            if step.step == stop:
                break
        later = replace(config, data=replace(config.data, workers=1)) if stop == 4 else config
        rest = list(adversarial_train(model, data, later, optimizer=optimizer, start_step=stop))
        assert [m.step for m in rest] == list(range(stop + 1, 7))
        assert_same(everything(straight), everything(model))


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model = foreign()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.register_forward_hook(lambda module, inputs, out: out * torch.nan)
    with pytest.raises(RunError, match=r"the loss became nan at step 1 of 6.*train.lr = 0.05"):
        next(adversarial_train(model, pictures(), settings(get("none"))))
    assert_same(before, dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("data", "config", "words"),
    [
        (pictures(7), settings(), "train.batch_size = 8: there are only 7 training images"),
        (pictures(8, classes=1), settings(), "num_classes = 1, at least 2 needed"),
        (pictures(), settings(augment="imagenet"), "data.augment = 'imagenet' needs image files"),
        (
            pictures(24, classes=3),
            settings(get("none")),
            r"the model returns a tensor \(8, 4\) for 8 images.*3 classes",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(data, config, words):
    with pytest.raises(InputError, match=words):
        next(adversarial_train(network(), data, config))
