"""Geometry of each spatial layer: its map, its window, and the share of the map that the window covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ..utils.contexts import frozen
from .cost import cost, modules_to_count
from .layers.local_relation import FullRelation2d, LocalRelation2d
from .layers.non_local import NonLocal2d


@dataclass(frozen=True)
class Layer:
    """A layer of a network for one image.

    Attributes:
        name: name of the module.
        kind: "convolution", "local relation", "full relation", "non-local" or "linear".
        input, output: height and width of its maps.
        window: height and width of its window; (1, 1) for pointwise layers.
        taps: mean number of positions of a window that lie inside the map, and the largest number.
        parameters, multiply_adds: see ``cost.profile``.
    """

    name: str
    kind: str
    input: tuple[int, int]
    output: tuple[int, int]
    window: tuple[int, int]
    taps: tuple[float, int]
    parameters: int
    multiply_adds: int

    @property
    def is_spatial(self) -> bool:
        """True if the layer looks beyond one pixel."""
        return self.kind not in ("linear", "full relation", "non-local") and prod(self.window) > 1

    @property
    def covers_map(self) -> bool:
        """True if some window of a spatial layer sees the whole map."""
        return self.is_spatial and self.taps[1] == prod(self.input)

    @property
    def sees_one_pixel(self) -> bool:
        """True if a spatial layer works on a map of a single pixel."""
        return self.is_spatial and prod(self.input) == 1


def layers(model: nn.Module, image: Tensor) -> list[Layer]:
    """Run one image and describe the convolutions, relations and linear layers in order; ``model`` is left as it was.

    Args:
        image: [1, C, H, W]; it and the model may be on "meta", where nothing is computed.
    """
    names = {module: name for name, module in model.named_modules()}
    found: list[Layer] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if (kind := kind_of(module)) is not None:
            found.append(describe(module, names[module], kind, inputs[0], output))

    handles = [module.register_forward_hook(record) for module in modules_to_count(model)]
    try:
        with frozen(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def kind_of(module: nn.Module) -> str | None:
    """Name the kind of a layer, None for those that have no window: norms, activations, sums."""
    kinds: dict[str, type[nn.Module]] = {
        "full relation": FullRelation2d,
        "local relation": LocalRelation2d,
        "non-local": NonLocal2d,
        "convolution": nn.Conv2d,
        "linear": nn.Linear,
    }
    return next((kind for kind, base in kinds.items() if isinstance(module, base)), None)


def describe(module: nn.Module, name: str, kind: str, x: Tensor, y: Tensor) -> Layer:
    before, after = (size(tensor) for tensor in (x, y))
    window, taps = (1, 1), (1.0, 1)
    if kind in ("full relation", "non-local"):
        window, taps = before, (float(prod(before)), prod(before))
    elif isinstance(module, nn.Conv2d | LocalRelation2d):
        window = pair(module.kernel_size)
        strides, paddings = pair(module.stride), [side // 2 for side in window]
        axes = [
            count_inside(*sides)
            for sides in zip(
                before, after, window, strides, paddings, pair(getattr(module, "dilation", 1)), strict=True
            )
        ]
        taps = prod(sum(axis) / len(axis) for axis in axes), prod(max(axis) for axis in axes)
    return Layer(
        name=name,
        kind=kind,
        input=before,
        output=after,
        window=window,
        taps=taps,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=cost(module, x, y).multiply_adds,
    )


def count_inside(size: int, outputs: int, window: int, stride: int, padding: int, dilation: int) -> list[int]:
    """Count, for each output of one axis, the positions of its window that lie on the map."""
    return [
        sum(0 <= output * stride - padding * dilation + tap * dilation < size for tap in range(window))
        for output in range(outputs)
    ]


def size(x: Tensor) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, 1)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def warnings(found: Sequence[Layer]) -> list[str]:
    """Name the layers that are not local at this image size: a window sees the whole map, or it is a single pixel."""
    covering = [layer for layer in found if layer.covers_map and not layer.sees_one_pixel]
    single = [layer for layer in found if layer.sees_one_pixel]
    lines = []
    for what, which in (("windows see their whole map", covering), ("works on a single pixel", single)):
        if which:
            names = ", ".join(layer.name for layer in which)
            lines.append(f"{len(which)} spatial layer{'s' if len(which) > 1 else ''}: {what}: {names}")
    return lines
