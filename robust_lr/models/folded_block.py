"""Residual blocks of networks that are attacked, which need few passes and calls for ReLUs, sums and gradients.

A block of layers with kernels is one node of the graph and one call of an operator, see csrc/cpu/block.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.local_relation import joined_relation, local_relation
from ..ops.reference import RelationOptions, accumulation_dtype
from .layers.fused_conv import FusedConv2d, covers, version_of
from .layers.local_relation import LocalRelation2d
from .layers.non_local import NonLocal2d
from .resnet import Block

Kind = TypeVar("Kind", bound=nn.Module)
Conv = TypeVar("Conv", bound=nn.Conv2d)


class FoldedRelation2d(LocalRelation2d):
    """A local relation layer in fewer passes: at stride 1 queries and keys come from one convolution, and the gradients
    of queries, keys and values are summed in the passes that make them."""

    def __init__(self, layer: LocalRelation2d):
        super(LocalRelation2d, self).__init__()
        for name in self.shown:
            setattr(self, name, getattr(layer, name))
        self.prior, self.transform = layer.prior, layer.transform
        if self.stride == 1:
            outputs = layer.query.out_channels + layer.key.out_channels
            self.both = make_like(layer.query, FusedConv2d, out_channels=outputs, bias=False)
        else:
            self.query, self.key = layer.query, layer.key

    @functools.cached_property
    def entry(self) -> FusedConv2d:
        """The convolution that sees the layer's input first."""
        return submodule(self, "both" if self.stride == 1 else "query", FusedConv2d)

    @functools.cached_property
    def keys(self) -> FusedConv2d:
        """The convolution that makes the keys, if it is separate."""
        return submodule(self, "key", FusedConv2d)

    def forward(self, x: Tensor) -> Tensor:
        y, x = self.entry.forked(x)
        if self.stride == 1:
            y = joined_relation(x, y, self.prior(), **self.options)
        else:
            k, x = self.keys.forked(x)
            y = local_relation(x, y, k, self.prior(), **self.options)
        out: Tensor = self.transform(y)
        return out

    def convolutions(self) -> list[FusedConv2d]:
        """Return the convolutions that make the queries and keys."""
        return [self.entry] if self.stride == 1 else [self.entry, self.keys]

    def parameters_of_kernel(self) -> list[Tensor]:
        """Return the tensors that operators of a whole block take for this layer without its channel transform."""
        prior = self.prior()
        weight = self.entry.weight
        wide = accumulation_dtype(weight.dtype)
        geo = weight.new_empty(0) if prior is None else prior.to(wide).contiguous()
        return [geo, *(tensor for conv in self.convolutions() for tensor in conv.parameters_of_kernel())]

    def numbers_of_kernel(self) -> list[int]:
        """Return the numbers that belong to them."""
        options = map(int, RelationOptions(**self.options).numbers())
        own = [number for conv in self.convolutions() for number in conv.numbers_of_kernel()]
        return [int(self.stride == 1), *options, *own]


class FoldedBlock(nn.Module):
    """A residual block whose ReLUs, and if possible its sum, are part of its convolutions, forward and backward."""

    def __init__(self, block: Block):
        super().__init__()
        self.downsample = block.downsample
        names = [name for name, _ in block.named_children() if name.startswith("conv")]
        before = None
        for name in names:
            layer = block.get_submodule(name)
            self.add_module(name, layer)
            last = layer.transform if isinstance(layer, LocalRelation2d | NonLocal2d) else layer
            assert isinstance(last, FusedConv2d)
            last.relu = name != names[-1] or last is layer
            join_masks(before, layer.entry if isinstance(layer, FoldedRelation2d) else layer)
            before = last
        *self.inner, self.last = names

    @functools.cached_property
    def entry(self) -> nn.Module:
        """The layer that sees the block's input."""
        return self.get_submodule(self.inner[0])

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # cannot look into one node, and makes its own calls of layers cheap
            return self.layer_by_layer(x)
        entry = self.entry
        if self.is_one_node and isinstance(entry, FusedConv2d):
            x = entry.converted(x)
            if covers(x, entry.weight):
                y: Tensor = _Block.apply(x.contiguous(memory_format=torch.channels_last), self)
                return y
        return self.layer_by_layer(x)

    def layer_by_layer(self, x: Tensor) -> Tensor:
        """Return the result with a node of the graph for every layer."""
        entry, *inner = (getattr(self, name) for name in self.inner)
        y, shortcut = entry.forked(x) if isinstance(entry, FusedConv2d) else (entry(x), x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        for layer in inner:
            y = layer(y)
        last = getattr(self, self.last)
        out: Tensor = last(y, shortcut) if isinstance(last, FusedConv2d) else F.relu(last(y) + shortcut, inplace=True)
        return out

    @functools.cached_property
    def is_one_node(self) -> bool:
        """Tell whether there are kernels for all layers of the block."""
        path: list[nn.Module] = [self.get_submodule(name) for name in (*self.inner, self.last)]
        if self.downsample is not None:
            path.append(self.downsample[0])
        convolutions = [
            conv
            for layer in path
            for conv in (layer.modules() if isinstance(layer, FoldedRelation2d) else [layer])
            if not isinstance(conv, FoldedRelation2d) and any(True for _ in conv.parameters())
        ]
        ends = isinstance(path[0], FusedConv2d) and isinstance(self.get_submodule(self.last), FusedConv2d)
        return ends and all(isinstance(conv, FusedConv2d) and conv.plain for conv in convolutions)

    @functools.cached_property
    def exit(self) -> FusedConv2d:
        """The last layer."""
        return submodule(self, self.last, FusedConv2d)

    @functools.cached_property
    def side(self) -> list[FusedConv2d]:
        """The convolution of the shortcut, if it has one."""
        return [] if self.downsample is None else [submodule(self.downsample, "0", FusedConv2d)]

    @functools.cached_property
    def kernel_layers(self) -> list[FusedConv2d | FoldedRelation2d]:
        """The layers of the block in order; the channel transform of a relation is a layer of its own."""
        layers: list[FusedConv2d | FoldedRelation2d] = []
        for name in (*self.inner, self.last):
            layer = self.get_submodule(name)
            if isinstance(layer, FoldedRelation2d):
                layers += [layer, submodule(layer, "transform", FusedConv2d)]
            else:
                layers.append(submodule(self, name, FusedConv2d))
        return layers

    @functools.cached_property
    def numbers(self) -> list[int]:
        """The numbers that the operators of a whole block take, see csrc/schema.h."""
        numbers = [int(self.exit.relu and not self.exit.premasked), len(self.side)]
        numbers += [number for conv in self.side for number in conv.numbers_of_kernel()]
        for layer in self.kernel_layers:
            numbers += [int(isinstance(layer, FoldedRelation2d)), *layer.numbers_of_kernel()]
        return numbers

    @functools.cached_property
    def stores(self) -> list[tuple[dict[str, Any], str]]:
        """The dictionary and the name of each weight, because attributes of modules take long to find."""
        stores = [store for module in self.modules() for store in (module._parameters, module._buffers)]
        return [(store, name) for store in stores for name, tensor in store.items() if tensor is not None]

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the operators take, made anew if a weight changed."""
        state = [self.exit.lowered, *[version_of(store[name]) for store, name in self.stores]]
        if self.__dict__.get("_state") != state:
            layers = (*self.side, *self.kernel_layers)
            self._tensors = [tensor for layer in layers for tensor in layer.parameters_of_kernel()]
            self._state = state
        return self._tensors


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: FoldedBlock) -> Tensor:
        tensors = block.tensors()
        out: Tensor
        out, kept = torch.ops.robust_lr.folded_block.default(x, tensors, block.numbers)
        ctx.block, ctx.tensors = block, tensors
        ctx.save_for_backward(x, out, kept)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, out, kept = ctx.saved_tensors
        block: FoldedBlock = ctx.block
        if torch.is_grad_enabled():  # a caller wants gradients of gradients
            x = x.view_as(x)  # a view cuts the path to the operation that made it
            return torch.autograd.grad(block.layer_by_layer(x), x, dy, create_graph=True)[0], None
        dy = dy.contiguous(memory_format=torch.channels_last)
        arguments = dy, x, out, kept, ctx.tensors, block.numbers
        return torch.ops.robust_lr.folded_block_gradient.default(*arguments), None


def join_masks(before: nn.Module | None, after: nn.Module) -> None:
    """Let a convolution take the gradient of the ReLU that the one before ends with, where both have a kernel."""
    if isinstance(before, FusedConv2d) and isinstance(after, FusedConv2d) and before.plain and after.plain:
        before.premasked = after.rectified = True


def make_like(conv: nn.Conv2d, kind: type[Conv], **changes: Any) -> Conv:
    """Make a convolution of the same sizes but for ``changes``, whose weights are still to be loaded."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    sizes = {name: getattr(conv, name) for name in names}
    made = kind(**sizes | changes, device="meta")  # draws no random numbers
    # not `to_empty`: PyTorch imports its compiler to allocate like a tensor on "meta", which takes half a second
    for name, parameter in list(made.named_parameters()):
        empty = torch.empty(parameter.shape, dtype=conv.weight.dtype, device=conv.weight.device)
        made.register_parameter(name, nn.Parameter(empty))
    return made.to(memory_format=torch.channels_last)


def submodule(model: nn.Module, name: str, kind: type[Kind]) -> Kind:
    """Return the submodule of that name, which must be a ``kind``."""
    module = model.get_submodule(name)
    if not isinstance(module, kind):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {kind.__name__}")
    return module
