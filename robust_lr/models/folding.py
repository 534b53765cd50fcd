"""Compute a network's function with less work: fold batch norm into weights, replace prior networks by their values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .folded_block import FoldedBlock, FoldedRelation2d, join_masks, make_like, submodule
from .layers.fused_conv import FusedConv2d, has_bfloat16
from .layers.geometric_prior import FixedPrior, NoPrior
from .layers.image_conv import ImageConv2d, takes
from .layers.local_relation import FullRelation2d, LocalRelation2d
from .layers.non_local import NonLocal2d
from .resnet import STAGES, Block, ResNet
from .traced_folding import trace_and_fold


def fold(model: ResNet) -> ResNet:
    """Return a frozen copy of ``model`` in eval mode that computes the same logits with fewer operations.

    Attacks run on it, because they need neither parameter gradients nor separate batch norms. Logits differ only by
    rounding. While ``model`` trains, ``folded.load_state_dict(folded_state(model))`` brings the copy up to date.
    """
    folded = copy.deepcopy(model)
    norms = dict(foldable(model))
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            kind: type[nn.Conv2d] = ImageConv2d if name == model.stem_names[0] and takes(conv) else FusedConv2d
            folded.set_submodule(name, make_like(conv, kind, bias=name in norms or conv.bias is not None))
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


def pack_weights(model: nn.Module) -> None:
    """Pack the weights of a folded network's convolutions now: processes that are forked later share them."""
    for module in model.modules():
        if isinstance(module, FusedConv2d) and module.has_kernel(module.weight):
            module.packed(module.weight)


class Widened(nn.Sequential):
    """Layers in bfloat16 whose result is float32."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return y.float()


@torch.no_grad()
def folded_state(model: ResNet) -> dict[str, Tensor]:
    """Return the state dict of ``fold(model)``."""
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


def foldable(model: ResNet) -> Iterator[tuple[str, str]]:
    """Yield the names of (convolution, batch norm) where the second takes just what the first returns.

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
    """Return True if the folded stem takes pixels as they are, because its 1x1 convolution takes normalization in."""
    name = model.stem_names[0]
    conv = model.get_submodule(name)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and name in dict(foldable(model))


def relations(model: ResNet) -> Iterator[str]:
    """Yield the names of the layers with a fixed prior; over the full image, it depends on the image's size."""
    for name, module in model.named_modules():
        windowed = isinstance(module, LocalRelation2d) and not isinstance(module, FullRelation2d)
        if windowed and not isinstance(module.prior, NoPrior):
            yield name


def refolded(model: ResNet) -> Iterator[str]:
    """Yield the names of the layers that become a `FoldedRelation2d`; the stem's is part of one operator as it is."""
    for name, module in model.named_modules():
        if type(module) is LocalRelation2d and name not in model.stem_names:
            yield name


def make_attackable(model: nn.Module, sample: Tensor | None = None) -> nn.Module:
    """Return the model to take gradients through: our networks are folded, others are attacked as they are.

    With a ``sample`` of images, [n, C, H, W], others are folded too if the sample shows that this makes no difference.
    """
    if isinstance(model, ResNet):
        return fold(model)
    return model if sample is None else trace_and_fold(model, sample) or model
