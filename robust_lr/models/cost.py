"""Count parameters, multiply-adds and activations, and find the width at which two networks cost the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.contexts import frozen
from ..utils.errors import InputError
from .build import build_model
from .layers.local_relation import FullRelation2d, LocalRelation2d
from .layers.non_local import NonLocal2d, NonLocalBlock
from .resnet import Block


@dataclass(frozen=True)
class Profile:
    """Cost of a network.

    Attributes:
        parameters: learnt values, each counted once.
        multiply_adds: those of convolutions, linear, local relation and non-local layers, for the whole input.
        activation_bytes: size of all that layers and residual sums return, for the whole input. Training without
            recomputation keeps about as much; values computed in place count once.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one call of a layer, and the number of values it produces, including intermediate ones."""

    multiply_adds: int
    values: int


def profile(model: nn.Module, input: Tensor) -> Profile:
    """Count one forward pass in eval mode; ``model`` is left as it was.

    The rule: a convolution or linear layer costs its weights at each output position. A local relation layer costs its
    three transforms likewise, and at each output position for each of the K*K positions of the window (those beyond the
    border too, as in convolutions): one for each channel that is aggregated, d for the similarity of each group, and
    one for its prior and softmax; with stride 1 and C divisible by m this is the paper's equation (6). A non-local
    layer costs its four transforms and both matrix products. Normalization, pooling and activations are not counted,
    nor is the prior network, whose values are fixed at inference.

    Args:
        model: any module; layers of other kinds count as free.
        input: a batch on the device of ``model``. Both may be on "meta", where nothing is computed.
    """
    costs: list[Cost] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        costs.append(cost(module, inputs[0], output))

    handles = [module.register_forward_hook(count) for module in modules_to_count(model)]
    try:
        with frozen(model), torch.no_grad():
            model(input)
    finally:
        for handle in handles:
            handle.remove()
    return Profile(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=sum(each.multiply_adds for each in costs),
        activation_bytes=sum(each.values for each in costs) * input.element_size(),
    )


def modules_to_count(model: nn.Module) -> Iterator[nn.Module]:
    """Select the modules to count: known layers as a whole, other leaf modules, and residual sums."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        if kind(module) is not None:
            inside.update(module.modules())
            yield module
        elif isinstance(module, Block | NonLocalBlock) or not any(True for _ in module.children()):
            yield module


def cost(module: nn.Module, x: Tensor, y: Tensor) -> Cost:
    rule = kind(module)
    return Cost(0, 0 if y is x else y.numel()) if rule is None else rule(module, x, y)


def kind(module: nn.Module) -> Callable[[Any, Tensor, Tensor], Cost] | None:
    """Find the counting rule for this kind of layer."""
    return next((RULES[base] for base in type(module).__mro__ if base in RULES), None)


def convolution(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Cost:
    return Cost(y.numel() * prod(layer.weight.shape[1:]), y.numel())


def linear(layer: nn.Linear, x: Tensor, y: Tensor) -> Cost:
    return Cost(y.numel() * layer.in_features, y.numel())


def local_relation(layer: LocalRelation2d, x: Tensor, y: Tensor) -> Cost:
    return relation(layer, x, y, keys=pixels(x), window=layer.kernel_size**2)


def full_relation(layer: FullRelation2d, x: Tensor, y: Tensor) -> Cost:
    keys = count_coarse(x, layer.key_stride)
    return relation(layer, x, y, keys=keys, window=keys)


def relation(layer: LocalRelation2d, x: Tensor, y: Tensor, *, keys: int, window: int) -> Cost:
    n, channels, outputs = len(x), x.shape[1], pixels(y)
    groups = -(-channels // layer.channels_per_group)
    queried = layer.query.out_channels
    transforms = (layer.query.weight.numel() + layer.transform.weight.numel()) * outputs
    aggregation = (channels + queried + groups) * window * outputs
    values = n * (queried * (outputs + keys) + channels * outputs) + y.numel()
    return Cost(n * (transforms + layer.key.weight.numel() * keys + aggregation), values)


def non_local(layer: NonLocal2d, x: Tensor, y: Tensor) -> Cost:
    n, outputs, keys, inner = len(x), pixels(y), count_coarse(x, layer.key_stride), layer.theta.out_channels
    transforms = (layer.theta.weight.numel() + layer.transform.weight.numel()) * outputs
    projections = (layer.phi.weight.numel() + layer.g.weight.numel()) * keys
    values = n * inner * 2 * (outputs + keys) + y.numel()
    return Cost(n * (transforms + projections + 2 * inner * outputs * keys), values)


def pixels(x: Tensor) -> int:
    return prod(x.shape[2:])


def count_coarse(x: Tensor, stride: int) -> int:
    """Count the positions of x's grid after downsampling by ``stride``."""
    return prod(-(-side // stride) for side in x.shape[2:])


RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Cost]] = {
    nn.Conv2d: convolution,
    nn.Linear: linear,
    LocalRelation2d: local_relation,
    FullRelation2d: full_relation,
    NonLocal2d: non_local,
}


@functools.cache
def paper_size(name: str, **options: Any) -> Profile:
    """Profile a network for one image of 224 x 224 and 1000 classes on the meta device."""
    with torch.device("meta"):
        return profile(build_model(name, **options), torch.empty(1, 3, 224, 224))


def solve_bottleneck(name: str, like: int, **options: Any) -> int:
    """Find the ``bottleneck`` with which a network comes closest to ``like`` multiply-adds at the paper's size.

    The rows of one table then cost the same, as in the paper's Table 3; the shipped configs contain the results.

    Raises:
        InputError: no width between 1 and 1024 comes within 5 %.
    """

    def multiply_adds(bottleneck: int) -> int:
        return paper_size(name, **{**options, "bottleneck": bottleneck}).multiply_adds

    low, high = 1, 1024
    while high - low > 1:  # cost rises with width
        middle = (low + high) // 2
        low, high = (middle, high) if multiply_adds(middle) <= like else (low, middle)
    best = min((low, high), key=lambda bottleneck: abs(multiply_adds(bottleneck) - like))
    if abs(multiply_adds(best) - like) > 0.05 * like:
        raise InputError(f"no bottleneck of {name} costs about {like} multiply-adds: the closest, {best}, does not")
    return best
