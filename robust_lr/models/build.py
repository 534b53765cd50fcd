"""Build networks by name. All take pixels in [0, 1] and normalize them internally."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..utils.checks import check_name, choose, convert
from ..utils.errors import InputError
from ..utils.machine import memory_limit
from .conv_nets import convolution, depthwise, non_local_net, resnet
from .layers.basic import IMAGENET_MEAN, IMAGENET_STD
from .lr_net import lr_net
from .resnet import BasicBlock, Bottleneck, Frame, ResNet

MAX_CHANNELS = 1024
MANY_CLASSES = 100_000

#: Where a width differs from the paper's alpha = 100/256, ``solve_bottleneck`` found it so that the network costs as
#: many multiply-adds as its rival: resnet26_dw and nl26 as ResNet-26, lrnet101 as ResNet-101, which also gives the
#: paper's 42.0M parameters. lrnet18 has the 14.4M parameters and 2.5G multiply-adds of the paper's Table 8.
MODELS: dict[str, partial[ResNet]] = {
    "resnet18": partial(resnet, (2, 2, 2, 2), BasicBlock, convolution, False),
    "resnet26": partial(resnet, (2, 2, 2, 2), Bottleneck, convolution, False),
    "resnet50": partial(resnet, (3, 4, 6, 3), Bottleneck, convolution, False),
    "resnet101": partial(resnet, (3, 4, 23, 3), Bottleneck, convolution, False),
    "resnet26_dw": partial(resnet, (2, 2, 2, 2), Bottleneck, depthwise, False, bottleneck=126),
    "resnet26_nl": partial(resnet, (2, 2, 2, 2), Bottleneck, convolution, True),
    "nl26": partial(non_local_net, (2, 2, 2, 2), bottleneck=94),
    "lrnet18": partial(lr_net, (2, 2, 2, 2), BasicBlock, False, bottleneck=376),
    "lrnet26": partial(lr_net, (2, 2, 2, 2), Bottleneck, False),
    "lrnet50": partial(lr_net, (3, 4, 6, 3), Bottleneck, False),
    "lrnet101": partial(lr_net, (3, 4, 23, 3), Bottleneck, False, bottleneck=103),
    "lrnet26_nl": partial(lr_net, (2, 2, 2, 2), Bottleneck, True),
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
        in_channels: 1 to 1,024.
        width: multiplies every channel count, > 0; 1.0 is the paper's network.
        stem: "imagenet" (stride 2 and pooling), "stride2" (no pooling, for images of about 28 to 96 pixels), or "small"
            (full resolution, for images up to 64 pixels).
        mean, std: pixel statistics of the first layer; by default ImageNet's for three channels, else 0.5 and 0.25.
        options: options of the layers, see ``conv_nets.resnet`` and ``lr_net.lr_net``.

    Raises:
        InputError: unknown name, stem or option, a value of the wrong type or out of range, or a network that does not
            fit half of the machine's memory.
    """
    builder = choose("model", name, MODELS)
    hints = {**typing.get_type_hints(builder.func), **typing.get_type_hints(Frame)}
    parameters = inspect.signature(builder.func).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    in_channels = convert(int, in_channels, "in_channels")
    if not 1 <= in_channels <= MAX_CHANNELS:
        raise InputError(f"in_channels = {in_channels}: must be between 1 and {MAX_CHANNELS}")
    color = in_channels == 3
    values: dict[str, Any] = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "width": width,
        "stem": stem,
        "mean": mean if mean is not None else IMAGENET_MEAN if color else (0.5,) * in_channels,
        "std": std if std is not None else IMAGENET_STD if color else (0.25,) * in_channels,
    }
    values = {key: convert(hints[key], value, key) for key, value in values.items()}
    for key, value in options.items():
        check_name(f"option of {name}", key, [*values, *own])
        options[key] = convert(hints[key], value, key)
    if values["num_classes"] < 1 or not 0 < values["width"] < 100:
        raise InputError(
            f"num_classes = {num_classes}, width = {width}: "
            "the first must be at least 1, the width above 0 and below 100"
        )
    if len(values["mean"]) != in_channels:
        raise InputError(f"mean = {values['mean']}: one value for each of {in_channels} channels is needed")
    if width > 1 or num_classes > MANY_CLASSES:  # the paper's networks always fit
        check_size(builder, values, options)
    model: ResNet = builder(Frame(**values), **options).to(memory_format=torch.channels_last)
    return model


def check_size(builder: Callable[..., ResNet], values: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a network whose weights would not fit half of the memory, without allocating any of them."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in builder(Frame(**values), **options).parameters())
    if 4 * weights > memory_limit() // 2:
        raise InputError(
            f"width = {values['width']:g}, num_classes = {values['num_classes']}: {weights:,} weights do not fit this "
            "machine's memory; make the network smaller"
        )
