"""Random transformations of training images, keyed by (seed, epoch, image id)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.rng import AUGMENT, integers, uniform
from .encoded import Transform, pixels

if TYPE_CHECKING:
    from PIL.Image import Image

#: images [N, C, H, W] in [0, 1], ids [N], seed, epoch -> images of the same shape
Augmentation = Callable[[Tensor, Tensor, int, int], Tensor]


def none(images: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Return images unchanged."""
    return images


def flip(images: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Flip horizontally with probability 1/2."""
    mirrored = integers(seed, AUGMENT, ids, 2, draw=epoch).bool().view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(3), images)


def flip_crop(images: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Flip horizontally with probability 1/2, then crop after zero padding by 1/8 of the size (He et al. 2016)."""
    n, _, height, width = images.shape
    images = flip(images, ids, seed, epoch)
    pad_h, pad_w = height // 8, width // 8
    shifts = uniform(seed, AUGMENT, ids, (4,), draw=epoch)[:, 2:]  # `flip` uses the first number
    top = (shifts[:, 0] * (2 * pad_h + 1)).long()
    left = (shifts[:, 1] * (2 * pad_w + 1)).long()
    padded = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
    count = partial(torch.arange, device=images.device)
    rows = (top[:, None] + count(height)).view(n, 1, height, 1)
    columns = (left[:, None] + count(width)).view(n, 1, 1, width)
    channels = count(images.shape[1]).view(1, -1, 1, 1)
    return padded[count(n).view(n, 1, 1, 1), channels, rows, columns]


#: augmentations of batches by name; "imagenet" is applied when files are decoded instead, see TRANSFORMS
AUGMENTATIONS: dict[str, Augmentation] = {"none": none, "flip": flip, "flip-crop": flip_crop, "imagenet": none}


def random_resized_crop(image: Image) -> Tensor:
    """Apply the paper's augmentation: random resized crop and horizontal flip. Returns uint8 [3, 224, 224]."""
    from torchvision.transforms import v2

    size, probability = 224, 0.5
    return pixels(v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(probability)])(image))


#: augmentations that are applied when a file is decoded, and hence not available for images in memory
TRANSFORMS: dict[str, Transform] = {"imagenet": random_resized_crop}
