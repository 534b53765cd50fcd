"""Local relation over the full image (paper Table 3): every pixel attends to every key, in bounded memory.

Plain PyTorch. Output pixels are processed in chunks; if gradients are needed, the backward pass computes a chunk's
weights again instead of keeping them.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .reference import Composability, Normalization, accumulation_dtype, similarity

#: weights held at a time: 64 MiB in fp32, of which a few copies exist at once
CHUNK = 2**24


def full_relation(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    geo: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    *,
    channels_per_group: int,
    composability: Composability,
    normalization: Normalization,
) -> Tensor:
    """Aggregate all of ``x`` for every query.

    Args:
        x: values [N, C, H, W], on the grid of the keys.
        q: queries [N, G*d, Ho, Wo].
        k: keys [N, G*d, H, W].
        geo: values of the geometric prior [G, R, S], or None.
        rows, columns: int64 [Ho, H] and [Wo, W], indices of the R vertical and S horizontal offsets between an output
            pixel and a key.

    Returns:
        [N, C, Ho, Wo] in x's dtype; logits and sums are float32, or float64 for float64 inputs.
    """
    n, channels, height, width = x.shape
    out_height, out_width = q.shape[2:]
    groups = -(-channels // channels_per_group)
    wide = accumulation_dtype(x.dtype)
    query = q.to(wide).reshape(n, groups, -1, out_height * out_width)
    key = k.to(wide).reshape(n, groups, -1, height * width)
    # a ragged last group is filled up with zero channels, which are cut off again at the end
    value = F.pad(x.to(wide).flatten(2), (0, 0, 0, groups * channels_per_group - channels))
    value = value.reshape(n, groups, channels_per_group, height * width).transpose(2, 3)
    prior = None if geo is None else geo.to(wide)

    def aggregate(query: Tensor, key: Tensor, value: Tensor, prior: Tensor | None, where: Tensor) -> Tensor:
        """Return [N, G, m, P] for queries [N, G, d, P] at the flat output positions ``where`` [P]."""
        logits = torch.zeros((), dtype=wide, device=query.device)
        for component in range(query.shape[2]):
            logits = logits + similarity(query[:, :, component, :, None], key[:, :, component, None], composability)
        if prior is not None:
            down, across = rows[where // out_width], columns[where % out_width]
            logits = logits + prior[:, down[:, :, None], across[:, None, :]].flatten(2)
        weights = logits.softmax(-1) if normalization == "softmax" else logits
        return (weights @ value).transpose(2, 3)

    chunk = max(1, CHUNK // (n * groups * height * width))
    again = torch.is_grad_enabled() and chunk < out_height * out_width
    parts = []
    for where in torch.split(torch.arange(out_height * out_width, device=x.device), chunk):
        arguments = query[..., where], key, value, prior, where
        if again:
            parts.append(checkpoint(aggregate, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(aggregate(*arguments))
    y = torch.cat(parts, dim=3).reshape(n, groups * channels_per_group, out_height, out_width)
    return y[:, :channels].to(x.dtype)


@functools.lru_cache(maxsize=64)
def offsets(size: int, stride: int, key_stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the distinct offsets from output pixels to keys along a side of ``size`` pixels, and their indices.

    Output pixels sit at multiples of ``stride``, keys in the middle of the ``key_stride`` pixels that they stand for.

    Returns:
        offsets, scaled to [-1, 1] by the longest one that the side allows (ours), float64 [R]; and their indices,
        int64 [outputs, keys].
    """
    line = torch.arange(size, dtype=torch.float64, device="cpu")
    keys = F.avg_pool1d(line.view(1, 1, -1), key_stride, ceil_mode=True).flatten()
    distances = keys - line[::stride, None]
    distinct, index = torch.unique(distances, return_inverse=True)
    return (distinct / max(1, size - 1)).to(device), index.to(device)
