"""The same function with less work: batch norm folded into weights, the prior network replaced by its values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..image_conv import ImageConv2d, takes
from ..layers import FullRelation2d, LocalRelation2d
from ..non_local import NonLocal2d
from ..priors import FixedPrior, NoPrior
from .resnet import ResNet

Kind = TypeVar("Kind", bound=nn.Module)


def fold(model: ResNet) -> ResNet:
    """A frozen copy of ``model`` in eval mode that computes the same logits with fewer operations.

    Attacks run on it: they need neither parameter gradients nor separate batch norms. Logits differ by rounding only.
    While ``model`` trains, ``folded.load_state_dict(folded_state(model))`` brings the copy up to date.
    """
    folded = copy.deepcopy(model)
    for conv_name, norm_name in foldable(model):
        conv = submodule(folded, conv_name, nn.Conv2d)
        conv.register_parameter("bias", nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0])))
        folded.set_submodule(norm_name, nn.Identity())
    for name in relations(model):
        layer = submodule(folded, name, LocalRelation2d)
        layer.prior = FixedPrior(layer.prior())
    first = model.stem_names[0]
    conv = submodule(folded, first, nn.Conv2d)
    if takes(conv):
        folded.set_submodule(first, image_conv(conv))
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
    return state


def image_conv(conv: nn.Conv2d) -> ImageConv2d:
    """Like ``conv``, with weights that are still to be loaded."""
    size, stride, padding = (int(pair[0]) for pair in (conv.kernel_size, conv.stride, conv.padding))
    made: ImageConv2d = skip_init(  # type: ignore[no-untyped-call]  # draws no random numbers
        ImageConv2d, conv.in_channels, conv.out_channels, size, stride, padding, bias=conv.bias is not None
    )
    return made.to(conv.weight).to(memory_format=torch.channels_last)


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


def submodule(model: nn.Module, name: str, kind: type[Kind]) -> Kind:
    """The submodule of that name, which must be a ``kind``."""
    module = model.get_submodule(name)
    if not isinstance(module, kind):
        raise TypeError(f"{name} is a {type(module).__name__}, not a {kind.__name__}")
    return module
