import pytest
from click.testing import CliRunner

from robust_lr import config as config_room
from robust_lr.cli import main
from robust_lr.training import plan as plan_room
from robust_lr.training.plan import Plan, find_size, plan
from robust_lr.utils.errors import InputError

TINY = ["model.name=resnet18", "model.width=0.0625", "model.stem=small", "attack.steps=1", "train.batch_size=64"]


def test_hours_follow_from_the_measured_steps():
    found = Plan(
        device="cuda: X", images=32, seconds=0.5, memory=1, epoch_images=1_280_000, epochs=90, processes=32, share=32,
        assumed=None,
    )  # fmt: skip
    assert found.images_per_second == 64
    assert found.hours == pytest.approx(90 * 1_280_000 / (32 * 64) / 3600)
    assert len(found.assumptions()) == 2


def test_a_plan_measures_steps_of_the_planned_run(monkeypatch):
    seen = []
    train = plan_room.adversarial_train

    def spy(model, data, config):
        seen.append((len(data), data.num_classes, data.image_shape, config))
        yield from train(model, data, config)

    monkeypatch.setattr(plan_room, "adversarial_train", spy)
    config = config_room.load(None, [*TINY, "validation.images=100"])
    found = plan(config, processes=2, images=3, steps=2)
    ((count, classes, shape, run),) = seen
    assert (count, classes, shape, run.train.batch_size, run.train.epochs) == (9, 10, (1, 28, 28), 3, 1)
    assert (run.attack, run.train.lr, run.model) == (config.attack, config.train.lr, config.model)
    assert (found.images, found.processes, found.share, found.epochs) == (3, 2, 32, 110)
    assert found.epoch_images == 3900 // 64 * 64
    assert found.seconds > 0
    assert found.memory > 2**20
    assert found.assumed is None
    assert any("as with the 3 measured" in line for line in found.assumptions())
    assert any("a CPU was measured" in line for line in found.assumptions())


def test_a_share_follows_from_processes_and_micro_batches():
    config = config_room.load(None, [*TINY, "compute.micro_batch=8"])
    assert plan(config, processes=2, steps=1).share == 8
    assert plan(config, processes=32, steps=1).images == 2


def test_a_cpu_is_measured_with_as_many_pixels_as_four_images_of_imagenet(monkeypatch):
    """With 4 images of 28 pixels, a pass would cost more than three times as much an image as with the batch of 64."""
    monkeypatch.setattr(plan_room, "CPU_PIXELS", 12 * 28 * 28)
    config = config_room.load(None, TINY)
    assert plan(config, steps=1).images == 12
    assert plan(config, processes=8, steps=1).images == 8


def test_imagenet_need_not_be_present(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, classes, shape, assumed = find_size(config_room.load("imagenet/lrnet26_adv"))
    assert (count, classes, shape) == (1_281_167, 1000, (3, 224, 224))
    assert "ImageNet is not here" in assumed
    assert find_size(config_room.load("imagenet/lrnet26_adv", ["data.limit=5000"]))[0] == 5000
    with pytest.raises(InputError, match="no such file"):
        find_size(config_room.load(None, ["data.name=npz:gone.npz"]))


@pytest.mark.parametrize("values", [{"processes": 0}, {"steps": 0}, {"images": -1}])
def test_plans_out_of_range_are_named(values):
    with pytest.raises(InputError, match="must be at least"):
        plan(config_room.load(None, TINY), **values)


def test_the_command_prints_measurement_plan_and_assumptions():
    words = [word for value in TINY for word in ("--set", value)]
    result = CliRunner().invoke(
        main, ["plan", "lrnet26_fashion_mnist_mini", *words, "--processes", "32", "--steps", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "measured: " in result.output
    assert "planned: 3 epochs of 3,968 images on 32 such devices: " in result.output
    assert "a CPU was measured, which says nothing about GPUs" in result.output
