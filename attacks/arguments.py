"""Checks of the arguments that all attacks share, so that a mistake is an error and never a number."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ..utils.checks import check_whole
from ..utils.errors import InputError

#: that libraries may take for rounding of x + delta, in pixels of [0, 1]
TOLERANCE = 1e-6

#: passes of a random model that one gradient may be averaged over
MAX_EOT = 1000


def check_attack(*, eps: float, step_size: float, steps: int, norm: str = "linf") -> None:
    """Pixels are in [0, 1]: in L-infinity, an eps or a step above 1 was meant in 0..255."""
    for name, value in {"eps": eps, "step_size": step_size}.items():
        if norm == "linf" and not 0 <= value <= 1:
            meant = 1 < value <= 255 and value == int(value)
            hint = f"for {value:g} of 255 levels write {value:g}/255" if meant else "for 8 of 255 levels write 8/255"
            raise InputError(f"{name} = {value:g} is outside [0, 1]: pixels are in [0, 1]; {hint}")
        if norm != "linf" and not 0 <= value < inf:
            raise InputError(f"{name} = {value:g}: an {norm.upper()} distance of pixels in [0, 1] is needed, 0 or more")
    check_whole(0, steps=steps)


def check_eot(eot: int) -> None:
    """A number of passes that a gradient is averaged over: at least 1, and no more than memory is meant for."""
    check_whole(1, eot=eot)
    if eot > MAX_EOT:
        raise InputError(f"eot = {eot}: at most {MAX_EOT} passes of the model for each gradient")


def check_labels(x: Tensor, labels: Tensor) -> None:
    """One int64 class index for each image."""
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels {tuple(labels.shape)} {labels.dtype}: one int64 class index for each of {len(x)} images is needed"
        )
    if (labels < 0).any():  # cross-entropy leaves label -100 out in silence
        raise InputError(f"labels: {int(labels.min())} is no class; classes are numbered from 0")


def within(x: Tensor, y: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """Distances of y from x, [N], and whether they are at most eps but for rounding, [N] bool; NaN is not."""
    distance = distances(x, y, norm)
    return distance, distance <= eps + max(TOLERANCE, rounding(x, eps, norm))


def check_start(x: Tensor, start: Tensor, eps: float, norm: str = "linf") -> None:
    """A first iterate in the ball and in [0, 1], of the images' own shape and dtype: others would broadcast."""
    if start.shape != x.shape or start.dtype != x.dtype:
        raise InputError(
            f"start {tuple(start.shape)} {start.dtype}: must be like the images, {tuple(x.shape)} {x.dtype}"
        )
    check_images(start)
    distance = float(distances(x, start, norm).max()) if x.numel() else 0.0
    if distance > eps + rounding(x, eps, norm):
        raise InputError(f"start: lies {distance:.6g} from the images, outside the ball of eps = {eps:.6g}")


def distances(x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distances between images of two batches [N, C, H, W], in L-infinity, L2 or L1, [N]."""
    delta = (y - x).flatten(1)
    if norm == "linf":
        return delta.abs().amax(1)
    length: Tensor = torch.linalg.vector_norm(delta, ord=2 if norm == "l2" else 1, dim=1)
    return length


def rounding(x: Tensor, eps: float, norm: str) -> float:
    """Tolerance for rounding x + delta out of the ball: by one pixel in L-infinity, by all of them in L2 and L1."""
    unit = 2 * torch.finfo(x.dtype).eps
    if norm == "linf":
        return unit
    return float(unit * (x[0].numel() ** (0.5 if norm == "l2" else 1.0) + eps))


def check_images(x: Tensor, ids: Tensor | None = None) -> None:
    """[N, C, H, W] float pixels in [0, 1]; the error names the image where ids [N] are given.

    Looks at every pixel, so it belongs before an attack, not in a step.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"images {tuple(x.shape)} {x.dtype}: [N, C, H, W] float pixels in [0, 1] are needed")
    if not x.numel():
        return
    low, high = x.flatten(1).aminmax(dim=1)
    outside = ~((low >= 0) & (high <= 1))  # so that NaN is outside too
    if outside.any():
        which = "images span"
        if ids is not None:
            which, low, high = f"image {int(ids[outside][0])} spans", low[outside][0], high[outside][0]
        raise InputError(
            f"{which} [{float(low.min()):.3g}, {float(high.max()):.3g}]: pixels must be in [0, 1]; "
            "normalization belongs inside the model"
        )
