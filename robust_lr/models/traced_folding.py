"""Fold batch norm into the convolution before it, in other people's networks, if torch.fx can trace them."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

#: largest differences of logits, and of gradients by the image in L2, from the network's own, as shares of the largest
#: logit and of the gradient; rounding that flips a ReLU or a maximum changes a gradient more than a logit
LOGITS, GRADIENTS = 1e-4, 1e-2


def trace_and_fold(model: nn.Module, sample: Tensor) -> nn.Module | None:
    """Return a frozen copy of ``model``, traced and folded, or None if that fails or may not be the same.

    Tracing runs Python code once and records its tensor operations: branches, randomness and contexts like ``no_grad``
    are lost. So the copy is used only if it gives the network's logits and gradients for a sample, and networks with
    hooks, which tracing would lose as well, are not folded.

    Args:
        model: in eval mode and frozen; it is left as it is.
        sample: images [n, C, H, W] in [0, 1] on its device, clean and perturbed ones.
    """
    if not count_norms(model) or any(map(has_hooks, model.modules())):
        return None
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # PyTorch 2.11 warns about itself
        from torch.fx.experimental.optimization import fuse
    try:
        network = copy.deepcopy(model)
        traced = GraphModule(network, LayerTracer().trace(network))
        folded = fuse(traced, inplace=True, no_trace=True).eval().requires_grad_(False)
        return folded if count_norms(folded) < count_norms(model) and agree(model, folded, sample) else None
    except Exception:  # a network that cannot be copied or traced may raise anything
        return None


class LayerTracer(Tracer):
    """A tracer that does not enter our own layers, whose checks of shapes are branches."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("robust_lr.")
        return ours or super().is_leaf_module(m, module_qualified_name)


def count_norms(model: nn.Module) -> int:
    """Count the batch norms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def agree(model: nn.Module, folded: nn.Module, sample: Tensor) -> bool:
    """Return True if the logits, with and without gradients, and the gradients of both agree up to rounding."""
    with torch.no_grad():
        logits, theirs = model(sample), folded(sample)
        if not close(logits, theirs):
            return False
        classes = logits.argmin(1)  # for a likely class, the gradient of the loss may be almost zero
    (logits, gradient), (their_logits, theirs) = (logits_and_gradient(net, sample, classes) for net in (model, folded))
    apart, length = ((part).flatten(1).norm(dim=1) for part in (gradient - theirs, gradient))
    return close(logits, their_logits) and bool((apart <= GRADIENTS * length).all())


def close(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() <= LOGITS * logits.abs().max())


def logits_and_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, classes], and the gradient of their summed cross-entropy by the images, like ``x``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
    return logits.detach(), gradient
