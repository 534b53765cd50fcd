"""Non-local layers (Wang et al. 2018), the paper's rivals in Table 7: content alone decides, over the full image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from .basic import Pointwise2d


class NonLocal2d(nn.Module):
    """Embedded Gaussian attention: softmax(theta(x) phi(x)) g(x) over all keys, then a 1x1 channel transform.

    Input [N, C, H, W], output [N, out_channels, ceil(H/s), ceil(W/s)]. Four 1x1 transforms with C / 2 channels between.
    Ours, where the papers are silent: keys and values stand for the mean of key_stride x key_stride pixels, as in
    ``FullRelation2d``; transforms have no bias; similarities are divided by the square root of their length, and theta
    and phi start with variance 1 / C, so that the softmax starts soft.

    Args:
        in_channels: C.
        out_channels: channels of the last transform.
        stride: stride of the queries.
        key_stride: how many times coarser than the input the grid of the keys is, on each side.

    Raises:
        InputError: a stride below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, key_stride: int = 1):
        super().__init__()
        for name, value in {"stride": stride, "key_stride": key_stride}.items():
            if value < 1:
                raise InputError(f"{name} = {value}: must be at least 1")
        inner = max(1, in_channels // 2)
        self.theta = Pointwise2d(in_channels, inner, stride)
        self.phi = Pointwise2d(in_channels, inner)
        self.g = Pointwise2d(in_channels, inner)
        self.transform = Pointwise2d(inner, out_channels)
        self.key_stride = key_stride
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the class's docstring says; networks call this again after their own general initialization."""
        for layer in (self.theta, self.phi):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)

    def extra_repr(self) -> str:
        return f"key_stride={self.key_stride}"

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, self.key_stride, ceil_mode=True) if self.key_stride > 1 else x
        theta = self.theta(x)
        query, key, value = map(to_one_head, (theta, self.phi(pooled), self.g(pooled)))
        y = F.scaled_dot_product_attention(query, key, value)[:, 0]
        out: Tensor = self.transform(y.transpose(1, 2).reshape(theta.shape))
        return out


def to_one_head(x: Tensor) -> Tensor:
    """Reshape [N, C, H, W] to [N, 1, H*W, C] for PyTorch's fused kernels, which never hold all weights in memory."""
    return x.flatten(2).transpose(1, 2)[:, None].contiguous()


class NonLocalBlock(nn.Module):
    """A non-local layer with batch norm and a shortcut, put behind a residual block; it starts as its shortcut."""

    def __init__(self, channels: int, *, key_stride: int = 1):
        super().__init__()
        self.relation = NonLocal2d(channels, channels, key_stride=key_stride)
        self.norm = nn.BatchNorm2d(channels)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm just before the sum."""
        return self.norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.relation(x))
        return out
