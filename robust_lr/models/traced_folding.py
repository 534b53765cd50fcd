"""Batch norm folded into the convolution before it, in networks of others that torch.fx can trace."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

#: how far logits, and gradients by the image in L2, may differ from the network's own, as shares of the largest logit
#: and of the gradient; a ReLU or a maximum that tips over by rounding changes a gradient more than a logit
LOGITS, GRADIENTS = 1e-4, 1e-2


def trace_and_fold(model: nn.Module, sample: Tensor) -> nn.Module | None:
    """A frozen copy of ``model``, traced and folded, or None where that cannot be done or is not surely the same.

    Tracing runs Python code once and keeps what it did to tensors: branches, randomness and contexts like ``no_grad``
    are lost. So the copy counts only if it gives the network's logits and gradients for a sample, and networks with
    hooks, which tracing would lose too, are left alone.

    Args:
        model: in eval mode and frozen; it is left as it is.
        sample: images [n, C, H, W] in [0, 1] on its device, clean and perturbed ones.
    """
    if not norms(model) or any(map(has_hooks, model.modules())):
        return None
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # PyTorch 2.11 about itself
        from torch.fx.experimental.optimization import fuse
    try:
        network = copy.deepcopy(model)
        traced = GraphModule(network, Whole().trace(network))
        folded = fuse(traced, inplace=True, no_trace=True).eval().requires_grad_(False)
        return folded if norms(folded) < norms(model) and same(model, folded, sample) else None
    except Exception:  # of a network that cannot be copied or traced, or does not like it: any kind
        return None


class Whole(Tracer):
    """Leaves our own layers whole: their checks of shapes are branches."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("robust_lr.")
        return ours or super().is_leaf_module(m, module_qualified_name)


def norms(model: nn.Module) -> int:
    """Number of batch norms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def same(model: nn.Module, folded: nn.Module, sample: Tensor) -> bool:
    """Return True if logits of both agree but for rounding, with and without gradients, and gradients do too."""
    with torch.no_grad():
        logits, theirs = model(sample), folded(sample)
        if not close(logits, theirs):
            return False
        classes = logits.argmin(1)  # the gradient of the loss of a likely class may be next to nothing
    (logits, gradient), (their_logits, theirs) = (logits_and_gradient(net, sample, classes) for net in (model, folded))
    apart, length = ((part).flatten(1).norm(dim=1) for part in (gradient - theirs, gradient))
    return close(logits, their_logits) and bool((apart <= GRADIENTS * length).all())


def close(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() <= LOGITS * logits.abs().max())


def logits_and_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and the gradient of their summed cross-entropy by the images, like ``x``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
    return logits.detach(), gradient
