"""The stem of LR-Net as one operator: convolution, batch norm, ReLU and local relation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.reference import accumulation_dtype
from ..ops.stem_relation import covers, stem_relation
from .layers.local_relation import LocalRelation2d
from .resnet import ResNet


class LRNet(ResNet):
    """A ResNet with the stem of LR-Net, which runs as one operator where there is a kernel for that."""

    def stem(self, x: Tensor) -> Tensor:
        if not covers(x):
            return super().stem(x)
        conv, norm, activation, relation = (self.get_submodule(name) for name in self.stem_names[:4])
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(relation, LocalRelation2d)
        layers = (conv, norm, activation, relation)
        if type(norm) not in (nn.BatchNorm2d, nn.Identity) or any(map(is_watched, layers)):
            return super().stem(x)
        y = stem_relation(
            x,
            stem_transform(x, conv, norm),
            relation.query.weight.flatten(1),
            relation.key.weight.flatten(1),
            relation.prior(),
            **relation.options,
        )
        x = relation.transform(y)
        for name in self.stem_names[4:]:
            x = self.get_submodule(name)(x)
        return x


def is_watched(module: nn.Module) -> bool:
    """Return True if the module, or a part of it, has a hook that needs its inputs or outputs."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in module.modules()
    )


def stem_transform(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Merge a 1x1 convolution of `x` and its batch norm into one transform [channels, inputs + 1], the bias last."""
    wide = accumulation_dtype(x.dtype)
    weight = conv.weight.flatten(1).to(wide)
    bias = torch.zeros_like(weight[:, 0]) if conv.bias is None else conv.bias.to(wide)
    if isinstance(norm, nn.BatchNorm2d):
        mean, variance = (statistic.to(wide) for statistic in statistics(x, weight, bias, norm))
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        weight, bias = weight * scale[:, None], norm.bias + (bias - mean) * scale
    return torch.cat([weight, bias[:, None]], dim=1)


def statistics(x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the mean and variance [channels] that batch norm takes for weight * x + bias; in training it tracks them.

    They follow exactly from the pixels' mean and covariance; in float64, because they are differences.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if not norm.training:
        return norm.running_mean, norm.running_var
    count = x.numel() // x.shape[1]
    pixels = x.double()
    average = pixels.mean((0, 2, 3))
    centered = (pixels - average[:, None, None]).unbind(1)
    covariance = torch.stack([torch.stack([(a * b).mean() for b in centered]) for a in centered])
    wide = weight.double()
    mean = (wide @ average + bias).to(bias.dtype)
    variance = ((wide @ covariance) * wide).sum(1).to(bias.dtype)
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        for running, found in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
            running.lerp_(found.to(running.dtype), share)
    return mean, variance
