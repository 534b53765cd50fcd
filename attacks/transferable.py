"""Techniques that help adversarial images transfer: diverse inputs (DI) and smoothed gradients (TI)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.rng import SEARCH, uniform

#: smallest side of a resized image, as a share of the image's (Xie et al. 2019: 299 of 330; torchattacks: 0.9)
MIN_SHARE = 0.9

#: number of standard deviations of the Gaussian that a kernel covers on each side (Dong et al. 2019)
DEVIATIONS = 3.0


def diversify(x: Tensor, ids: Tensor, draws: Tensor, probability: float, *, seed: int) -> Tensor:
    """Shrink and pad images at random (DI-FGSM, Xie et al. 2019, "Improving transferability").

    Args:
        x: images [N, C, H, W].
        ids, draws: [N] int64; with ``seed`` they determine the change of each image.
        probability: probability of a change; other images stay as they are.
    """
    numbers = uniform(seed, SEARCH, ids.to(x.device), (4,), draws).tolist()
    out = []
    for image, (change, size, top, left) in zip(torch.split(x, 1), numbers, strict=True):
        if change >= probability:
            out.append(image)
            continue
        whole = x.shape[-1]
        small = int(whole * MIN_SHARE)
        side = min(small + int(size * (whole - small)), whole - 1)
        room = whole - side
        out.append(shrink_and_pad(image, side, int(top * room), int(left * room)))
    return torch.cat(out)


def shrink_and_pad(x: Tensor, side: int, top: int, left: int) -> Tensor:
    """Resize ``x`` to ``side`` (bilinear, keeping the aspect ratio), and pad it with zeros to its original size."""
    height, width = x.shape[2:]
    tall = max(1, round(height * side / width))
    small = F.interpolate(x, size=(tall, side), mode="bilinear", align_corners=False)
    above = min(top, height - tall)
    return F.pad(small, (left, width - side - left, above, height - tall - above))


def smooth_gradient(gradient: Tensor, size: int) -> Tensor:
    """Convolve a gradient [N, C, H, W] with a Gaussian of ``size`` x ``size`` (TI-FGSM, Dong et al. 2019)."""
    line = torch.linspace(-DEVIATIONS, DEVIATIONS, size, dtype=torch.float64, device=gradient.device)
    weights = (-line.square() / 2).exp()
    kernel = weights[:, None] * weights
    kernel = (kernel / kernel.sum()).to(gradient.dtype)
    # each channel of each image is convolved separately, which gives the same bits for any batch
    planes = torch.split(gradient.flatten(0, 1)[:, None], 1)
    return torch.cat([F.conv2d(plane, kernel[None, None], padding=size // 2) for plane in planes]).view_as(gradient)
