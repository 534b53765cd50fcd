"""What a trained LR-Net has learned: geometric priors, query and key maps, and the weights of one window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import functional

from ..data.dataset import to_unit_range
from ..data.encoded import FileSource, center_crop, decode
from ..models.layers.local_relation import FullRelation2d, LocalRelation2d
from ..ops.reference import similarity
from ..utils.contexts import frozen
from ..utils.errors import InputError

#: the paper's name of a stage -> the module's name
STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


@dataclass(frozen=True)
class Composition:
    """The composition of a local relation layer at one pixel of the image.

    Attributes:
        stage: the paper's name of the stage.
        group: index of the group of channels.
        query, key: maps [H, W] of the group's first component, on the layer's output and input grids.
        weights: aggregation weights of the window around the pixel, [K, K]; NaN at positions outside the image that
            the layer masks.
        center: row and column of the window's center on the grid of the keys.
        cell: height and width of one key in pixels of the image.
    """

    stage: str
    group: int
    query: Tensor
    key: Tensor
    weights: Tensor
    center: tuple[int, int]
    cell: tuple[float, float]


def read_image(file: Path, channels: int, size: int | None = None) -> Tensor:
    """Read an image file as float32 [channels, H, W] in [0, 1].

    Args:
        channels: 3, or 1 for gray.
        size: resize the shorter side to ``size`` and crop the center; None keeps the image as it is.

    Raises:
        InputError: the file does not exist or is not an image, ``size`` is below 1, or ``channels`` is not 1 or 3.
    """
    if not file.is_file():
        raise InputError(f"image {str(file)!r}: no such file")
    if size is not None and size < 1:
        raise InputError(f"size = {size}: must be at least 1")
    if channels not in (1, 3):
        raise InputError(f"the network takes images of {channels} channels: only 1 and 3 can be read from a file")
    source = FileSource(file.parent, [file.name])
    image = to_unit_range(decode(source, 0, None if size is None else partial(center_crop, short=size, side=size)))
    gray: Tensor = functional.rgb_to_grayscale(image)
    return image if channels == 3 else gray


def last_layers(model: nn.Module) -> dict[str, LocalRelation2d]:
    """Return the last windowed local relation layer of each stage, by the stage's name.

    Raises:
        InputError: the model has no such layer.
    """
    layers = {}
    for stage, name in STAGES.items():
        found = [layer for layer in getattr(model, name, nn.Module()).modules() if isinstance(layer, LocalRelation2d)]
        windowed = [layer for layer in found if not isinstance(layer, FullRelation2d)]
        if windowed:
            layers[stage] = windowed[-1]
    if not layers:
        raise InputError("the network has no local relation layers with a window: give the checkpoint of an LR-Net")
    return layers


@torch.no_grad()
def learnt_priors(model: nn.Module) -> dict[str, Tensor]:
    """Return the geometric priors after softmax over the window, [groups, K, K], of each stage's last layer (Figure 4).

    Raises:
        InputError: the model has no local relation layers, or they have no geometric prior.
    """
    priors = {}
    for stage, layer in last_layers(model).items():
        values: Tensor | None = layer.prior()
        if values is None:
            raise InputError("the network was trained without a geometric prior: give one that has a prior")
        priors[stage] = values.flatten(1).softmax(1).view_as(values)
    return priors


@torch.no_grad()
def compute_compositions(
    model: nn.Module, image: Tensor, pixel: tuple[int, int], groups: Sequence[int] | None = None
) -> list[Composition]:
    """Return query and key maps and the weights of one pixel's window, for the last layer of each stage (Figure 5).

    Args:
        image: [C, H, W] float32 in [0, 1].
        pixel: row and column in the image.
        groups: index of a group for each stage; by default the group whose keys vary most (ours).

    Raises:
        InputError: the pixel is outside the image, or a layer has no such group.
    """
    height, width = image.shape[1:]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise InputError(f"pixel {pixel}: outside the image of {height} rows and {width} columns, counted from 0")
    layers = last_layers(model)
    seen: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
        for layer in layers.values()
    ]
    try:
        with frozen(model):
            model(image[None])
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for index, (stage, layer) in enumerate(layers.items()):
        x = seen[layer]
        count = -(-x.shape[1] // layer.channels_per_group)
        query, key = (
            transform(x)[0].unflatten(0, (count, -1)) for transform in (layer.query, layer.key)
        )  # [G, d, H, W]
        group = int(key[:, 0].flatten(1).std(1, correction=0).argmax()) if groups is None else groups[index]
        if not 0 <= group < count:
            raise InputError(f"group {group}: the layer of {stage} has groups 0 to {count - 1}")
        cell = (height / key.shape[2], width / key.shape[3])
        place = (int(pixel[0] / cell[0]) // layer.stride, int(pixel[1] / cell[1]) // layer.stride)
        center = (place[0] * layer.stride, place[1] * layer.stride)
        weights = window_weights(layer, query[group, :, place[0], place[1]], key[group], center, group)
        found.append(Composition(stage, group, query[group, 0], key[group, 0], weights, center, cell))
    return found


def window_weights(layer: LocalRelation2d, query: Tensor, key: Tensor, center: tuple[int, int], group: int) -> Tensor:
    """Return the weights [K, K] of one window, from ``query`` [d] and ``key`` [d, H, W] around ``center``."""
    size, radius = layer.kernel_size, layer.kernel_size // 2
    rows, columns = (slice(at, at + size) for at in center)
    keys = F.pad(key, (radius,) * 4)[:, rows, columns]
    inside = F.pad(torch.ones_like(key[0]), (radius,) * 4)[rows, columns] > 0
    logits = similarity(query[:, None, None], keys, layer.composability).sum(0)
    prior: Tensor | None = layer.prior()
    if prior is not None:
        logits = logits + prior[group]
    if layer.border == "mask":
        logits = logits.masked_fill(~inside, -inf if layer.normalization == "softmax" else 0.0)
    weights = logits.flatten().softmax(0).view_as(logits) if layer.normalization == "softmax" else logits
    return weights if layer.border == "zero" else weights.masked_fill(~inside, torch.nan)
