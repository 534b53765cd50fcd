"""The same function with less work: batch norm folded into weights, the prior network replaced by its values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..ops.local_relation import joined_relation, local_relation
from .layers.fused_conv import FusedConv2d, has_bfloat16
from .layers.geometric_prior import FixedPrior, NoPrior
from .layers.image_conv import ImageConv2d, takes
from .layers.local_relation import FullRelation2d, LocalRelation2d
from .layers.non_local import NonLocal2d
from .resnet import STAGES, Block, ResNet
from .traced_folding import trace_and_fold

Kind = TypeVar("Kind", bound=nn.Module)
Conv = TypeVar("Conv", bound=nn.Conv2d)


def fold(model: ResNet) -> ResNet:
    """A frozen copy of ``model`` in eval mode that computes the same logits with fewer operations.

    Attacks run on it: they need neither parameter gradients nor separate batch norms. Logits differ by rounding only.
    While ``model`` trains, ``folded.load_state_dict(folded_state(model))`` brings the copy up to date.
    """
    folded = copy.deepcopy(model)
    norms = dict(foldable(model))
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            kind: type[nn.Conv2d] = ImageConv2d if name == model.stem_names[0] and takes(conv) else FusedConv2d
            folded.set_submodule(name, remade(conv, kind, bias=name in norms or conv.bias is not None))
    for name in norms.values():
        folded.set_submodule(name, nn.Identity())
    if takes_pixels(model):
        folded.set_submodule("normalize", nn.Identity())
    for name in relations(model):
        layer = submodule(folded, name, LocalRelation2d)
        layer.prior = FixedPrior(layer.prior())
    for name in refolded(model):
        folded.set_submodule(name, FoldedRelation2d(submodule(folded, name, LocalRelation2d)))
    for name, block in list(folded.named_modules()):
        if isinstance(block, Block):
            folded.set_submodule(name, FoldedBlock(block))
    layers = [layer for name in STAGES for layer in folded.get_submodule(name).children()]
    if all(isinstance(layer, FoldedBlock) for layer in layers):
        for before, block in pairwise(cast(list[FoldedBlock], layers)):
            join_masks(before.get_submodule(before.last), block.entry)
    folded.load_state_dict(folded_state(model))
    return folded.eval().requires_grad_(False)


def in_bfloat16(folded: nn.Module) -> nn.Module | None:
    """Return a copy of a folded network whose convolutions and local relations are in bfloat16, on a CPU.

    The stem, sums within layers, pooling, the classifier and its logits stay in float32, and so does the gradient by
    the image. None where there are no kernels for it: other networks and layers, and other processors.
    """
    if not isinstance(folded, ResNet) or not has_bfloat16():
        return None
    convolutions = [module for module in folded.modules() if isinstance(module, FusedConv2d)]
    if not convolutions or any(isinstance(module, FullRelation2d | NonLocal2d) for module in folded.modules()):
        return None
    lowered = copy.deepcopy(folded)
    for module in lowered.modules():
        if isinstance(module, FusedConv2d):
            module.lowered = True
    lowered.set_submodule("layer4", Widened(*lowered.get_submodule("layer4").children()))
    return lowered


class Widened(nn.Sequential):
    """Layers in bfloat16 whose result is float32."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return y.float()


@torch.no_grad()
def folded_state(model: ResNet) -> dict[str, Tensor]:
    """The state dict of ``fold(model)``."""
    state = model.state_dict()
    for conv_name, norm_name in foldable(model):
        eps = submodule(model, norm_name, nn.BatchNorm2d).eps
        norm = {key: state.pop(f"{norm_name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        del state[f"{norm_name}.num_batches_tracked"]
        weight, bias = fuse_conv_bn_weights(
            state[f"{conv_name}.weight"],
            None,
            norm["running_mean"],
            norm["running_var"],
            eps,
            norm["weight"],
            norm["bias"],
        )
        state[f"{conv_name}.weight"], state[f"{conv_name}.bias"] = weight, bias
    if takes_pixels(model):
        mean, std = (state.pop(f"normalize.{name}").flatten() for name in ("mean", "std"))
        name = model.stem_names[0]
        weight = state[f"{name}.weight"] / std[:, None, None]
        state[f"{name}.bias"] = state[f"{name}.bias"] - weight.flatten(1) @ mean
        state[f"{name}.weight"] = weight
    for name in relations(model):
        for key in [key for key in state if key.startswith(f"{name}.prior.")]:
            del state[key]
        state[f"{name}.prior.values"] = submodule(model, name, LocalRelation2d).prior()
    for name in refolded(model):
        if submodule(model, name, LocalRelation2d).stride > 1:
            continue
        state[f"{name}.both.weight"] = torch.cat([state.pop(f"{name}.{part}.weight") for part in ("query", "key")])
    return state


def remade(conv: nn.Conv2d, kind: type[Conv], **changes: Any) -> Conv:
    """A convolution of the same sizes but for ``changes``, whose weights are still to be loaded."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    sizes = {name: getattr(conv, name) for name in names}
    made = kind(**sizes | changes, device="meta")  # draws no random numbers
    # not `to_empty`: PyTorch imports its compiler to allocate like a tensor on "meta", which takes half a second
    for name, parameter in list(made.named_parameters()):
        empty = torch.empty(parameter.shape, dtype=conv.weight.dtype, device=conv.weight.device)
        made.register_parameter(name, nn.Parameter(empty))
    return made.to(memory_format=torch.channels_last)


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
            self.both = remade(layer.query, FusedConv2d, out_channels=outputs, bias=False)
        else:
            self.query, self.key = layer.query, layer.key

    @property
    def entry(self) -> FusedConv2d:
        """The convolution that sees the layer's input first."""
        return submodule(self, "both" if self.stride == 1 else "query", FusedConv2d)

    def forward(self, x: Tensor) -> Tensor:
        y, x = self.entry.forked(x)
        if self.stride == 1:
            y = joined_relation(x, y, self.prior(), **self.options)
        else:
            k, x = submodule(self, "key", FusedConv2d).forked(x)
            y = local_relation(x, y, k, self.prior(), **self.options)
        out: Tensor = self.transform(y)
        return out


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

    @property
    def entry(self) -> nn.Module:
        """The layer that sees the block's input."""
        return self.get_submodule(self.inner[0])

    def forward(self, x: Tensor) -> Tensor:
        entry, *inner = (getattr(self, name) for name in self.inner)
        y, shortcut = entry.forked(x) if isinstance(entry, FusedConv2d) else (entry(x), x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        for layer in inner:
            y = layer(y)
        last = getattr(self, self.last)
        out: Tensor = last(y, shortcut) if isinstance(last, FusedConv2d) else F.relu(last(y) + shortcut, inplace=True)
        return out


def join_masks(before: nn.Module | None, after: nn.Module) -> None:
    """Let a convolution take the gradient of the ReLU that the one before ends with, where both have a kernel."""
    if isinstance(before, FusedConv2d) and isinstance(after, FusedConv2d) and before.plain and after.plain:
        before.premasked = after.rectified = True


def foldable(model: ResNet) -> Iterator[tuple[str, str]]:
    """Names of (convolution, batch norm) where the second takes just what the first returns.

    In our networks a batch norm is registered right after the layer that feeds it; that of a local relation layer
    takes the output of the layer's channel transform.
    """
    for parent_name, parent in model.named_modules():
        prefix = f"{parent_name}." if parent_name else ""
        for (name, layer), (norm_name, norm) in pairwise(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                inner = ".transform" if isinstance(layer, LocalRelation2d | NonLocal2d) else ""
                yield f"{prefix}{name}{inner}", f"{prefix}{norm_name}"


def takes_pixels(model: ResNet) -> bool:
    """True if the folded stem takes pixels as they are: a 1x1 convolution and its batch norm take normalization in."""
    name = model.stem_names[0]
    conv = model.get_submodule(name)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and name in dict(foldable(model))


def relations(model: ResNet) -> Iterator[str]:
    """Names of the layers whose prior has fixed values: that over the full image depends on the image's size."""
    for name, module in model.named_modules():
        windowed = isinstance(module, LocalRelation2d) and not isinstance(module, FullRelation2d)
        if windowed and not isinstance(module.prior, NoPrior):
            yield name


def refolded(model: ResNet) -> Iterator[str]:
    """Names of the layers that become a `FoldedRelation2d`; that of the stem is part of one operator as it is."""
    for name, module in model.named_modules():
        if type(module) is LocalRelation2d and name not in model.stem_names:
            yield name


def submodule(model: nn.Module, name: str, kind: type[Kind]) -> Kind:
    """The submodule of that name, which must be a ``kind``."""
    module = model.get_submodule(name)
    if not isinstance(module, kind):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {kind.__name__}")
    return module


def attackable(model: nn.Module, sample: Tensor | None = None) -> nn.Module:
    """Model that gradients are taken through: our networks are folded, others are attacked as they are.

    With a ``sample`` of images, [n, C, H, W], others are folded too where it shows that this makes no difference.
    """
    if isinstance(model, ResNet):
        return fold(model)
    return model if sample is None else trace_and_fold(model, sample) or model
