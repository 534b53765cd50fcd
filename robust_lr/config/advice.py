"""Warnings about config values that are allowed but rarely intended."""

from __future__ import annotations

from .training import Config

#: images with a shorter side than this lose too much to the strides of the ImageNet stem
SMALL_SIDE = 64
#: recipes published for CIFAR-10, where they train for 15 epochs (fast) to 200 (Rice et al. 2020)
CIFAR_RECIPES = ("madry", "trades", "fast")
MIN_CIFAR_EPOCHS = 15


def give_advice(config: Config, image_shape: tuple[int, int, int]) -> list[str]:
    """Return one sentence for each value of ``config`` that does not suit its recipe or its images.

    Args:
        image_shape: channels, height and width of the images.
    """
    found = []
    side = min(image_shape[1:])
    if side < SMALL_SIDE and config.model.get("stem", "imagenet") == "imagenet":
        found.append(
            f"model.stem = 'imagenet' reduces images of {image_shape[1]} x {image_shape[2]} pixels by 4 before the "
            "first block: set model.stem = 'small'"
        )
    recipe = config.attack.name.partition("-")[0]
    if recipe in CIFAR_RECIPES and config.train.epochs < MIN_CIFAR_EPOCHS and side >= 32:
        found.append(
            f"train.epochs = {config.train.epochs}: {recipe} is published with {MIN_CIFAR_EPOCHS} epochs or more; "
            "see the config cifar10_resnet18"
        )
    return found
