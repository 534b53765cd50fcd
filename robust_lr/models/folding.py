"""The same function with less work: batch norm folded into weights, the prior network replaced by its values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .layers.fused_conv import FusedConv2d
from .layers.geometric_prior import FixedPrior, NoPrior
from .layers.image_conv import ImageConv2d, takes
from .layers.local_relation import FullRelation2d, LocalRelation2d
from .layers.non_local import NonLocal2d
from .resnet import Block, ResNet
from .traced_folding import fused

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
    for name in relations(model):
        layer = submodule(folded, name, LocalRelation2d)
        layer.prior = FixedPrior(layer.prior())
    for name in joined(model):
        folded.set_submodule(name, JoinedRelation2d(submodule(folded, name, LocalRelation2d)))
    for name, block in list(folded.named_modules()):
        if isinstance(block, Block):
            folded.set_submodule(name, FoldedBlock(block))
    folded.load_state_dict(folded_state(model))
    return folded.eval().requires_grad_(False)


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
    for name in relations(model):
        for key in [key for key in state if key.startswith(f"{name}.prior.")]:
            del state[key]
        state[f"{name}.prior.values"] = submodule(model, name, LocalRelation2d).prior()
    for name in joined(model):
        state[f"{name}.both.weight"] = torch.cat([state.pop(f"{name}.{part}.weight") for part in ("query", "key")])
    return state


def remade(conv: nn.Conv2d, kind: type[Conv], **changes: Any) -> Conv:
    """A convolution of the same sizes but for ``changes``, whose weights are still to be loaded."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    sizes = {name: getattr(conv, name) for name in names}
    made: Conv = skip_init(kind, **sizes | changes)  # type: ignore[no-untyped-call]  # draws no random numbers
    return made.to(conv.weight).to(memory_format=torch.channels_last)


class JoinedRelation2d(LocalRelation2d):
    """A local relation layer at stride 1 whose queries and keys come from one convolution."""

    def __init__(self, layer: LocalRelation2d):
        super(LocalRelation2d, self).__init__()
        for name in self.shown:
            setattr(self, name, getattr(layer, name))
        self.prior, self.transform = layer.prior, layer.transform
        outputs = layer.query.out_channels + layer.key.out_channels
        self.both = remade(layer.query, FusedConv2d, out_channels=outputs, bias=False)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.both(x).chunk(2, dim=1)
        return q, k


class FoldedBlock(nn.Module):
    """A residual block whose ReLUs, and if possible its sum, are part of its convolutions."""

    def __init__(self, block: Block):
        super().__init__()
        self.downsample = block.downsample
        names = [name for name, _ in block.named_children() if name.startswith("conv")]
        for name in names:
            layer = block.get_submodule(name)
            self.add_module(name, layer)
            last = layer.transform if isinstance(layer, LocalRelation2d | NonLocal2d) else layer
            assert isinstance(last, FusedConv2d)
            last.relu = name != names[-1] or last is layer
        *self.inner, self.last = names

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for name in self.inner:
            x = getattr(self, name)(x)
        last = getattr(self, self.last)
        y: Tensor = last(x, shortcut) if isinstance(last, FusedConv2d) else F.relu(last(x) + shortcut, inplace=True)
        return y


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


def relations(model: ResNet) -> Iterator[str]:
    """Names of the layers whose prior has fixed values: that over the full image depends on the image's size."""
    for name, module in model.named_modules():
        windowed = isinstance(module, LocalRelation2d) and not isinstance(module, FullRelation2d)
        if windowed and not isinstance(module.prior, NoPrior):
            yield name


def joined(model: ResNet) -> Iterator[str]:
    """Names of the layers with one convolution for queries and keys; the stem's is one operator as it is."""
    for name, module in model.named_modules():
        if type(module) is LocalRelation2d and module.stride == 1 and name not in model.stem_names:
            yield name


def submodule(model: nn.Module, name: str, kind: type[Kind]) -> Kind:
    """The submodule of that name, which must be a ``kind``."""
    module = model.get_submodule(name)
    if not isinstance(module, kind):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {kind.__name__}")
    return module


def attackable(model: nn.Module, sample: Tensor | None = None) -> nn.Module:
    """What the gradients are taken through: our networks are folded, others are attacked as they are.

    With a ``sample`` of images, [n, C, H, W], others are folded too where it shows that this makes no difference.
    """
    if isinstance(model, ResNet):
        return fold(model)
    return model if sample is None else fused(model, sample) or model
