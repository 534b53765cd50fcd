"""Batch norm over the images of all processes."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..utils.contexts import device_of


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with synchronized batch norms that shares its parameters and buffers."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    if device_of(model).type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(twin)  # type: ignore[no-untyped-call]
        return converted
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncedBatchNorm2d
    return twin


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Synchronized batch norm in plain tensor operations, because nn.SyncBatchNorm supports GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        shape, axes = (1, -1, 1, 1), (0, 2, 3)
        ones = x.new_full((1,), x.numel() / x.shape[1])
        total = _Sum.apply(torch.cat([x.sum(axes), ones]))
        mean, count = total[:-1] / total[-1], total[-1]
        centered = x - mean.view(shape)
        variance: Tensor = _Sum.apply((centered * centered).sum(axes)) / count
        with torch.no_grad():
            kept = dict(self.named_buffers())
            kept["running_mean"].lerp_(mean, self.momentum)  # type: ignore[arg-type]
            kept["running_var"].lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[arg-type]
            kept["num_batches_tracked"].add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        out: Tensor = centered * scale.view(shape) + self.bias.view(shape)
        return out


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
