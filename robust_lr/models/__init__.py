"""Networks by name. Every one takes pixels in [0, 1] and normalizes them itself."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..errors import InputError
from ..layers import IMAGENET_MEAN, IMAGENET_STD
from ..text import check_name, choose, typed
from .lr_net import lr_net
from .resnet import BasicBlock, Bottleneck, ResNet, resnet

MODELS: dict[str, partial[ResNet]] = {
    "resnet18": partial(resnet, (2, 2, 2, 2), BasicBlock),
    "resnet26": partial(resnet, (2, 2, 2, 2), Bottleneck),
    "resnet50": partial(resnet, (3, 4, 6, 3), Bottleneck),
    "resnet101": partial(resnet, (3, 4, 23, 3), Bottleneck),
    "lrnet26": partial(lr_net, (2, 2, 2, 2)),
    "lrnet50": partial(lr_net, (3, 4, 6, 3)),
    "lrnet101": partial(lr_net, (3, 4, 23, 3)),
}


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    stem: str = "imagenet",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> ResNet:
    """Build a network: pixels [N, in_channels, H, W] float in [0, 1] -> logits [N, num_classes].

    Args:
        name: a key of ``MODELS``.
        num_classes: at least 1.
        in_channels: at least 1.
        width: multiplies every channel count, > 0; 1.0 is the paper's network.
        stem: "imagenet", or "small" for images up to 64 pixels (full resolution, no pooling).
        mean, std: pixel statistics of the first layer; by default ImageNet's for three channels, else 0.5 and 0.25.
        options: the layer options of LR-Nets, see ``layers.LocalRelation2d``.

    Raises:
        InputError: unknown name, stem or option, or a value of the wrong type or out of range.
    """
    builder = choose("model", name, MODELS)
    hints = typing.get_type_hints(builder.func)
    allowed = [key for key in hints if key not in ("depths", "block", "return")]
    in_channels = typed(int, in_channels, "in_channels")
    color = in_channels == 3
    values = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "width": width,
        "stem": stem,
        "mean": mean if mean is not None else IMAGENET_MEAN if color else (0.5,) * in_channels,
        "std": std if std is not None else IMAGENET_STD if color else (0.25,) * in_channels,
        **options,
    }
    for key, value in values.items():
        check_name(f"option of {name}", key, allowed)
        values[key] = typed(hints[key], value, key)
    if values["num_classes"] < 1 or in_channels < 1 or not 0 < values["width"] < 100:
        raise InputError(
            f"num_classes = {num_classes}, in_channels = {in_channels}, width = {width}: "
            "the first two must be at least 1, the width between 0 and 100"
        )
    if len(values["mean"]) != in_channels:
        raise InputError(f"mean = {values['mean']}: one value for each of {in_channels} channels is needed")
    model: ResNet = builder(**values).to(memory_format=torch.channels_last)
    return model
