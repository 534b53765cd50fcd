"""Describe a network stage by stage, as in the paper's Table 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.build import build_model
from ..models.cost import profile
from ..models.layers.local_relation import FullRelation2d, LocalRelation2d
from ..models.layers.non_local import NonLocal2d
from ..models.resnet import Block


@dataclass(frozen=True)
class StageLine:
    """One stage of a network.

    Attributes:
        side: height and width of the output.
        layers: the layers in words.
        parameters, multiply_adds: cost of the stage, the latter for one image.
    """

    name: str
    side: int
    layers: str
    parameters: int
    multiply_adds: int


def describe_stages(name: str, **options: Any) -> list[StageLine]:
    """Describe the stages of a network for one image of 224 x 224 and 1000 classes, counted as ``profile`` does."""
    with torch.device("meta"):
        model, x = build_model(name, **options), torch.empty(1, 3, 224, 224)
        stem = nn.Sequential(*(model.get_submodule(part) for part in model.stem_names)).eval()
        stages = {"stem": stem, **{f"res{n + 1}": model.get_submodule(f"layer{n}") for n in (1, 2, 3, 4)}}
        lines = []
        for stage, module in stages.items():
            y: Tensor = module.eval()(x)
            blocks = [block for block in module.children() if isinstance(block, Block)]
            others = [block for block in module.children() if not isinstance(block, Block)]
            words = name_layers(blocks[-1]) + f" x {len(blocks)}" if blocks else name_layers(module)
            if blocks and others:
                words += f", each then {name_layers(others[-1])}"
            found = profile(module, x)
            lines.append(StageLine(stage, y.shape[-1], words, found.parameters, found.multiply_adds))
            x = y
        found = profile(model.fc, torch.empty(1, model.fc.in_features))
    return [*lines, StageLine("fc", 1, f"pooling, {model.fc.out_features}", found.parameters, found.multiply_adds)]


def name_layers(module: nn.Module) -> str:
    """Return the names of a module's layers, separated by "|"."""
    inside: set[nn.Module] = set()
    words = []
    for layer in module.modules():
        if layer not in inside and (word := layer_words(layer)):
            inside.update(layer.modules())
            words.append(word)
    return " | ".join(words)


def layer_words(layer: nn.Module) -> str | None:
    """Return the name of a layer with its size and width; None for layers that the table leaves out."""
    if isinstance(layer, FullRelation2d):
        return f"full LR {layer.transform.out_channels}"
    if isinstance(layer, LocalRelation2d):
        return f"{layer.kernel_size}x{layer.kernel_size} LR {layer.transform.out_channels}"
    if isinstance(layer, NonLocal2d):
        return f"NL {layer.transform.out_channels}"
    if isinstance(layer, nn.Conv2d):
        side = layer.kernel_size[0]
        return f"{side}x{side}{' DW' if layer.groups > 1 else ''} {layer.out_channels}"
    return "max-pool" if isinstance(layer, nn.MaxPool2d) else None
